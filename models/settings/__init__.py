"""Settings of encoder, training, second stage and index: frozen dataclasses that import nothing heavy."""
