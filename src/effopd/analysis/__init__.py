"""What a checkpoint changed: norms, spectra, subspaces, interventions and trajectories."""
