"""Trains every method of a plan in every world, and compares."""
