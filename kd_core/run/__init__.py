"""A run: its folder, its checkpoints, and what it logs to W&B."""
