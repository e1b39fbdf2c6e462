"""What people read of a run: the console, the page, the plots."""
