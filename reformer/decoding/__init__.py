"""Sampling from a language model, and beam search from an encoder-decoder."""

from reformer.decoding.sampling import Sampling, advance, check, draw_rotations, generate, prefill, sample

__all__ = ["Sampling", "advance", "check", "draw_rotations", "generate", "prefill", "sample"]
