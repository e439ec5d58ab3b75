"""Requests of some length with an answer of known length, for benchmarks that measure time alone."""

REQUEST = "Write a long story about a sailor who finds island number {} and everything that lives on it."
COMPLETION = " ".join(
    ["The sailor rowed on until the island was a line on the horizon, and then he slept."] * 4
)
