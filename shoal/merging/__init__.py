"""The search for a merge: weights of several adapters, by layers, that an evolution strategy finds.

Knows adapters, tasks and training; the closed forms of merging are `shoal.adapters.merging`.
"""
