"""A student for use elsewhere: files, model card, the classes of your own images."""
