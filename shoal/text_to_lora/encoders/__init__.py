"""Encoders of descriptions for a hypernetwork: sentence vectors, or the backbone's own states."""
