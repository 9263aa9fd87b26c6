"""The models: a shared trunk, and what the family makes of it."""
