"""Networks: built, loaded, exported and run over a split."""
