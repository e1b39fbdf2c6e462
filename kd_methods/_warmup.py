"""Losses that grow from 0 over the first part of training."""

WARMUP = "fraction of training in which the loss grows from 0; 0: none"  # what the setting says of itself


def warmed_up(progress: float, warmup: float) -> float:
    """How far a loss has grown from 0 to 1 over the fraction `warmup` of training; 1 without one."""
    return min(progress / warmup, 1.0) if warmup else 1.0


def growth_in_words(warmup: float) -> str:
    """What to add to the description of a loss."""
    return f", growing from 0 over the first {warmup:.3g} of training" if warmup else ""
