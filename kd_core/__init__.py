"""What the scripts share: one noun per module."""
