"""The boundary in which programs written by a model run."""
