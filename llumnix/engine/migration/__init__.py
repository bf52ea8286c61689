"""Moving a request between two engines, exactly: export, import, refusals, and access to KV blocks."""
