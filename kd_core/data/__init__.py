"""Images: sources, splits, decoding, and the views that a step draws of them."""
