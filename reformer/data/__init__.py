"""Data pipelines: bytes on disk to batches of token ids."""
