"""Arrays in, arrays out: the recommenders and their metrics (torch, numpy, safetensors)."""
