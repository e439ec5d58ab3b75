"""A library of skills that are learnt one after another: adapters, an additive router, a gate, and versions.

Every step is a transaction: it is committed whole, or the library is as it was. Knows a model, adapters,
their router and a directory; nothing of owners, services or people.
"""
