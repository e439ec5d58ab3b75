"""Transformer²: expert vectors over singular values, and the router that picks one for each request."""
