"""Nearest-neighbour search over item vectors, exact and with FAISS."""
