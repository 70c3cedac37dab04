"""The sequence encoder: embeddings, attention, blocks, batching."""
