"""Experiments: `base` holds every field with its default, each other file one experiment and its presets."""
