"""Short cuts for NumPy arrays on a CPU."""
