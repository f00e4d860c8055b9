"""Hyperbolic geometry: manifolds, and what modules and optimizers need of them."""
