"""Fused kernels, written in Pallas."""
