"""The floating-point operations of a training, counted from its sizes."""

from torch import nn

from models.histories import Int64
from models.settings.encoder import EncoderSettings
from models.training.optimizers import DECAYED


def num_pairs(lengths: Int64, settings: EncoderSettings) -> int:
    """Pairs of positions that attend to each other in one layer: `l (l + 1) / 2` of a causal history, `l * l` of a closed one.

    A causal window of w leaves a position at most w.
    """
    if not settings.attends:
        return 0
    if settings.direction == "bidirectional":
        return int((lengths * lengths).sum())
    window = settings.window or int(lengths.max(initial=1))
    inside = lengths.clip(max=window)
    return int((inside * (inside + 1) // 2 + (lengths - inside) * window).sum())


def matrix_entries(encoder: nn.Module) -> int:
    """Entries of the matrices that every token is multiplied by: those of linear, recurrent and convolutional layers."""
    layers = (module for module in encoder.modules() if isinstance(module, DECAYED))
    weights = (weight for layer in layers for weight in layer.parameters(recurse=False))
    return sum(weight.numel() for weight in weights if weight.ndim >= 2)


def step_flops(
    settings: EncoderSettings, *, entries: int, lengths: Int64, num_targets: int, num_candidates: int
) -> int:
    """Floating-point operations of the matrix products of one optimiser step, of what is there without any padding.

    `3 * 2 (t e + 2 p d b + n c d)`: a product of m x n by n x k takes 2 m n k, and twice that in the backward pass; t tokens
    meet e matrix entries, p pairs meet in b attention blocks as queries with keys and as weights with values, n targets are
    scored against c candidates. What each candidate does by itself (readout "target") is not counted.
    """
    tokens, pairs = int(lengths.sum()), num_pairs(lengths, settings)
    attention = 2 * pairs * settings.dim * settings.num_blocks
    return 3 * 2 * (tokens * entries + attention + num_targets * num_candidates * settings.dim)
