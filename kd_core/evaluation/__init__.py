"""How good a student and its teachers are, and what went wrong in a run, by its own measurements."""
