"""Foreign files: weights, configs and voices of published models, read and written."""
