"""Verifiers: whether a completion answers its problem."""
