"""Training an encoder: losses, negatives, optimisers, the training loop."""
