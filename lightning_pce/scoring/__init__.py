"""Scoring of checkpoints: models, data, chunks, and log-probabilities made elsewhere."""
