"""Loading models, seeing them as hidden states and a head, and checkpoints on disk."""
