"""Training and evaluation of a Reformer language model."""
