"""Merges that need more than adapters: the search for weights, whole models, and whether to merge at all.

Knows adapters, tasks and training; the closed forms of merging are `shoal.adapters.merging`.
"""
