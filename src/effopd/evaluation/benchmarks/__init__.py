"""Benchmarks: answer, grade, record, compare."""
