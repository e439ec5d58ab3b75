"""Adapters of many owners made into one: rules of aggregation, and checks of what an owner sends."""
