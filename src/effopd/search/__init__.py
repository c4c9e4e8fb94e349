"""The method: an engine-free line search along the displacement of the parameters."""
