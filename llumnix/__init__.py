"""Llumnix: a serving cluster of vLLM instances with one global scheduler."""

__version__ = "0.2.0"
