"""Looking inside a trained model: what its attention does, in numbers and pictures."""
