"""Gradient matching in pieces: distance, engine, priors, starts, descent."""
