"""Measuring a student: scores of rollouts, evaluations, and validators for the search."""
