"""Attribution through GRUs: first-order change of a score when a step leaves the hidden state unchanged.

Letters: b rows, k items explained per row, l positions of the longest window, d components of a state.
"""

import torch
from torch import Tensor
from torch.nn import functional

from models.device import to_numpy
from models.encoder.batching import Window
from models.encoder.encoder import Encoder
from models.encoder.recurrent import GRUBlock
from models.explanation.attribution import without_last
from models.histories import Float32
from models.shapes import Float


def is_gru(encoder: Encoder) -> bool:
    """Whether every layer is a GRU block and scores are inner products."""
    layers = encoder.layer_list
    return encoder.scores_by_vector and bool(layers) and all(isinstance(layer, GRUBlock) for layer in layers)


def slopes_in_time(encoder: Encoder, window: Window, candidates: Float[Tensor, "b k d"]) -> Float32:
    """Sum over blocks of `d score / d h_i . (h_i - h_{i-1})`, h the hidden state: [b, k, l]; exact for the last interaction."""
    with torch.enable_grad():
        states, pushed, gates = encoder.embed(window).detach(), list[Tensor](), list[Tensor]()
        for block in encoder.layer_list:
            assert isinstance(block, GRUBlock)
            states, pushes, gate = _skippable(block, states)
            pushed.append(pushes)
            gates.append(gate)
        states = encoder.finished(states)
        at_last = states[torch.arange(len(states), device=encoder.device), window.lengths - 1]
        scores = (candidates * at_last.unsqueeze(1)).sum(-1)
    weights = candidates.new_zeros(*candidates.shape[:2], window.item_index.shape[1])
    for place in range(candidates.shape[1]):
        gradients = torch.autograd.grad(scores[:, place].sum(), pushed, retain_graph=True)
        for gradient, gate in zip(gradients, gates, strict=True):
            weights[:, place] -= (gradient / gate).sum(-1)
    # a causal encoder has computed the state before the last interaction, unless it depends on the request time
    rows, lengths = torch.arange(len(weights), device=weights.device), window.lengths
    if encoder.settings.request_time:
        with torch.no_grad():
            shorter = encoder.last_states(without_last(window))
    else:
        shorter = states.detach()[rows, (lengths - 2).clamp_min(0)]
    shorter = shorter * (lengths > 1).unsqueeze(1)
    weights[rows, :, lengths - 1] = scores.detach() - (candidates * shorter.unsqueeze(1)).sum(-1)
    return to_numpy(weights)


def _skippable(
    block: GRUBlock, states: Float[Tensor, "b l d"]
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
    """(new states, zeros e, update gates z), for leaving an interaction out to first order.

    e is added to the argument of z's logistic function. Leaving out position i sets its z to 1, so h_i = h_{i-1}; since
    dh_i / de_i = z (1 - z) (h_{i-1} - c), a score then changes to first order by d score / d e_i / z_i, summed over components.
    Without dropout; for a causal block.
    """
    dim = states.shape[-1]
    normed = block.norm(states)
    from_input, from_hidden, *biases = (weight.detach() for weight in block.onward.parameters())
    pushes = torch.zeros_like(states, requires_grad=True)
    onto_z = functional.pad(torch.eye(dim, device=states.device), (0, 0, dim, dim))
    weights = [torch.cat([from_input, onto_z], 1), from_hidden, *biases]
    # in this layout torch multiplies fast
    steps = torch.cat([normed, pushes], -1).transpose(0, 1).contiguous()
    start = states.new_zeros(1, len(states), dim)
    hidden = torch.gru(steps, start, weights, True, 1, 0.0, True, False, False)[0].transpose(0, 1)
    before = functional.pad(hidden.detach()[:, :-1], (0, 0, 1, 0))
    middle = slice(dim, 2 * dim)
    z = functional.linear(normed.detach(), from_input[middle], biases[0][middle])
    z = (z + functional.linear(before, from_hidden[middle], biases[1][middle])).sigmoid()
    return states + hidden, pushes, z.clamp_min(torch.finfo(z.dtype).tiny)
