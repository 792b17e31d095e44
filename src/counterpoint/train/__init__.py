"""Training: one loop for every system, its optimiser, checkpoints and many processes."""
