"""Losses to train on, made of log-probabilities that are read in chunks."""
