"""Problems, verifiers and where they come from."""
