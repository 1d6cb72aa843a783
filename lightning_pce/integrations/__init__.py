"""Percentile CE in trainers other than Lightning's."""
