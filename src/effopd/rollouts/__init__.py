"""Engines that write completions, and prompts."""
