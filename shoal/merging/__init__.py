"""The search for a merge: weights of several adapters, found by evolution.

Knows adapters, tasks and training; the closed forms of merging are `shoal.adapters.merging`.
"""
