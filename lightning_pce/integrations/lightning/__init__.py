"""Percentile CE under a Trainer of Lightning: mixin, callback, figures, checkpoints."""
