"""Linear algebra that several layers share: spectra, leading directions, Krylov spaces."""
