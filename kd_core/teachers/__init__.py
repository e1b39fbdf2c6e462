"""Teachers: loaded or trained, and their logits, cached or computed."""
