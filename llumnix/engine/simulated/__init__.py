"""vLLM's engine without a model: its scheduler and block manager are real, its steps only take time."""
