"""Talking to inference servers: safe HTTP, retries, and what vLLM and SGLang ask and answer."""
