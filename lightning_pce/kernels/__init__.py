"""Three ways to read the logits once: eager operations, one compiled function, a Triton kernel."""
