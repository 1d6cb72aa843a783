"""What a model says of each token: which count, and their statistics."""
