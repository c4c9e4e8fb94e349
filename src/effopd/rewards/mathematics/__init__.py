"""Answers in LaTeX: normalised, decided by text and arithmetic, parsed, compared by value."""
