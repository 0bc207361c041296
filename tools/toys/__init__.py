"""Mixtures of Gaussians on which guidance can be held against the exact answer."""
