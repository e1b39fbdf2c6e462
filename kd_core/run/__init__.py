"""A run: its folder, and what W&B is told of it."""
