"""What the training loop runs on: processes, signals, optimizer, running means, clocks."""
