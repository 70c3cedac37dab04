"""The sequence encoder: embeddings, attention, blocks, readouts, batching."""
