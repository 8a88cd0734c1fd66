"""Model checkpoints and masks, read and written one tensor at a time."""
