"""Flax Linen layers: parameters, projections, and a call into the operations."""
