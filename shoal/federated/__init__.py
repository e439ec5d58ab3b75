"""Federated adaptation: many owners train one adapter or expert, and no example leaves them."""
