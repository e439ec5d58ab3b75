"""Answers of an adapted model: forward passes, sampling, generation, and the engine that batches requests."""
