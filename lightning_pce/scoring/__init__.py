"""Models and data in, records out: what the command line runs."""
