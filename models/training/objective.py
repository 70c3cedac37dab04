"""Training loss as one module, for data-parallel training. Letters: n targets, s states, m negatives, items = num_items + 1."""

from typing import Any

import torch
from torch import Tensor, nn

from models.encoder.attention import HistoryAttention
from models.encoder.batching import Batch, Contrasts
from models.encoder.encoder import Encoder
from models.settings.training import TrainSettings
from models.shapes import Float
from models.training.losses import (
    dislike_loss,
    sampled_loss,
    sampled_loss_of_scores,
    softmax_loss,
    softmax_loss_of_sets,
)
from models.training.negatives import Negatives

MAX_GRAPHS = 64
"""Compiled graphs of static shapes; what comes in other shapes then is not compiled."""


class Objective(nn.Module):
    """Weighted mean of `settings.loss` over a batch's targets, from the encoder's states and item vectors.

    A batch with dislikes adds `dislike_loss` over the sum of the targets' weights: a dislike of weight -1 counts as much as a
    target of weight 1.

    Softmax is over the items seen in training, sampled losses are over the step's negatives. `compile`: torch.compile for the
    encoder alone, since losses loop over chunks; one graph for all shapes, or with `static_shapes` one for each of them, up to
    MAX_GRAPHS.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: TrainSettings,
        *,
        compile: bool = False,  # noqa: A002
        static_shapes: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.states = encoder.states
        if compile:
            for layer in encoder.modules():
                if isinstance(layer, HistoryAttention):
                    # a graph would unroll the blocks of each length; flex_attention is compiled by itself
                    layer.blocked = torch.compiler.disable(layer.blocked)  # type: ignore[no-untyped-call]
                    layer.flexible = torch.compiler.disable(layer.flexible)  # type: ignore[no-untyped-call]
            self.states = torch.compile(encoder.states, dynamic=not static_shapes)
        if static_shapes:
            torch._dynamo.config.recompile_limit = MAX_GRAPHS  # noqa: SLF001  (beyond 8 it would compile no more)
        self.settings = settings
        known = encoder.candidates()
        self.num_candidates = encoder.num_items if known is None else len(known)

    def forward(self, batch: Batch, negatives: Negatives | None) -> Float[Tensor, ""]:
        """Loss of a batch; `negatives` for sampled losses."""
        states = self.states(batch.windows)
        loss = self._of_targets(states, batch, negatives)
        return loss if batch.contrasts is None else loss + self._of_dislikes(states, batch, batch.contrasts)

    def _of_dislikes(self, states: Float[Tensor, "cells d"], batch: Batch, contrasts: Contrasts) -> Tensor:
        vectors = self.encoder.vectors_of(contrasts.liked), self.encoder.vectors_of(contrasts.disliked)
        loss = dislike_loss(states[contrasts.position], *vectors, contrasts.weight)
        return loss / batch.weight.sum()

    def _of_targets(
        self, states: Float[Tensor, "cells d"], batch: Batch, negatives: Negatives | None
    ) -> Tensor:
        if negatives is None:
            return self._softmax(states[batch.position], batch)
        settings, encoder = self.settings, self.encoder
        assert settings.loss != "softmax"
        options: dict[str, Any] = {
            "num_candidates": self.num_candidates,
            "logq_correction": settings.logq_correction,
            "gbce_calibration": settings.gbce_calibration,
        }
        drawn = negatives.item_index
        if not encoder.scores_by_vector:
            scores = encoder.target_scores(states, batch, drawn)
            return sampled_loss_of_scores(
                settings.loss, *scores, batch.target, negatives, batch.weight, **options
            )
        vectors = encoder.vectors_of(batch.target), encoder.vectors_of(drawn)
        chosen = states[batch.target_position]
        return sampled_loss(settings.loss, chosen, *vectors, batch.target, negatives, batch.weight, **options)

    def _softmax(self, states: Float[Tensor, "s d"], batch: Batch) -> Tensor:
        known, target = self.encoder.candidates(), batch.target
        if known is None:
            vectors = self.encoder.item_vectors()
        else:
            vectors = self.encoder.vectors_of(torch.cat([known.new_zeros(1), known]))
            target = torch.searchsorted(known, target) + 1
        if batch.state is None:
            return softmax_loss(states, vectors, target, batch.weight)
        readable = batch.readable.state
        return softmax_loss_of_sets(
            states, vectors, batch.state, target, batch.weight, readable_state=readable
        )
