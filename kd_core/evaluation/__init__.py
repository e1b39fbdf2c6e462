"""How good a student and its teachers are, and what a run's own numbers say went wrong."""
