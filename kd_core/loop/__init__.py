"""What the training loop runs on: processes, signals, the optimizer, running means, timing."""
