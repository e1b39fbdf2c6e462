"""A student for use elsewhere: exports, model cards, files of logits, the classes of your own images."""
