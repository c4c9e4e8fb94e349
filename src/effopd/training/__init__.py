"""The training loop, its objectives, its state on disk."""
