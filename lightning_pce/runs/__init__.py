"""What is known after validations: their history, and what follows from it."""
