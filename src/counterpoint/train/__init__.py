"""Training: one loop for every system, optimisers, checkpoints and several processes."""
