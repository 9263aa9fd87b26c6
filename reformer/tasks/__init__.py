"""What a run learns: a model, the data that it takes, and what of a config does not fit them."""
