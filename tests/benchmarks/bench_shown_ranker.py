"""The second stage on what an older system showed: does it lead to what users would truly take?

    python tests/benchmarks/bench_shown_ranker.py [--users 300] [--seeds 1] [--log NAME]… [--kind NAME]…

Logs and judgement are those of bench_exposure_weighting.py: every event is a reaction to a list of five, and each user's ten best
items are judged by the simulation's true rates. The encoder learns from 24 days of lists, the ranker from two nights of three
days each: from retrieved candidates; from what was shown, as stage rank does; or from lists of what was shown beside those of all
candidates, the retrieved ones with what was shown among them.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))

from features import simulated_exposures
from models.encoder.encoder import AttentionRecommender
from models.histories import Histories, Int64, ItemSets, ShownItems
from models.ranking.features import FEATURES, ItemStatistics
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.shown import SHOWN_FEATURES
from models.ranking.shown_lists import ShownLists
from models.ranking.training import Retrieved, fit_ranker
from models.ranking.two_stage import TwoStage
from models.settings.encoder import EncoderSettings
from models.settings.ranker import RankerSettings
from models.settings.training import TrainSettings
from models.training.exposure_weights import (
    PlaceLooks,
    inverse_looks,
    looks_at_items,
    without_chance,
)
from models.training.loop import fit
from tests.benchmarks.bench_exposure_weighting import BIASES, NUM_ITEMS, Bias, readers_of

DAY = 86_400_000_000
FIRST, NIGHTS, END, HORIZON = 90, (114, 117), 120, 3
"""Days of the log: the first, the nights of the ranker, the night of the judged lists; length of a horizon."""
RANKER = RankerSettings(candidates=60, popular=10, favourites=10, max_length=20)
WIDTH = NUM_ITEMS + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--log", choices=[*BIASES], action="append")
    parser.add_argument("--kind", action="append", help="what the ranker learns from, besides 'retrieved'")
    chosen = parser.parse_args()
    print("| log | encoder's weights | ranker learns from | true rate of ten items | paired difference |")
    print("| --- | --- | --- | --- | --- |")
    for name in chosen.log or BIASES:
        found = [dict(measure(BIASES[name], chosen.users, seed, chosen.kind)) for seed in range(chosen.seeds)]
        for weights, kind in found[0]:
            rates = np.concatenate([own[weights, kind] for own in found])
            difference = rates - np.concatenate([own[weights, "retrieved"] for own in found])
            half = 1.96 * difference.std() / np.sqrt(len(difference))
            print(
                f"| {name} | {weights} | {kind} | {rates.mean():.4f} | {difference.mean():+.4f} ± {half:.4f} |",
                flush=True,
            )


@dataclass(frozen=True)
class Shown:
    """Exposures [e] by user and time, and the reactions to them."""

    num_users: int
    user: Int64
    item: Int64
    time: Int64
    """Microseconds"""
    place: Int64
    is_taken: np.ndarray
    truth: np.ndarray
    """[users, items], rates of those who look"""

    @classmethod
    def drawn(cls, bias: Bias, num_users: int, seed: int) -> "Shown":
        """A list a day for every user."""
        readers = readers_of(bias, num_users, seed)
        user = np.repeat(np.arange(num_users), END - FIRST)
        day, phase = np.tile(np.arange(FIRST, END), num_users), np.zeros(len(user), np.int64)
        lists = simulated_exposures.draw(readers, user, day, phase, np.random.default_rng((seed, 1)))
        places = lists.item.shape[1]
        return cls(
            num_users,
            np.repeat(user, places),
            lists.item.ravel() + 1,
            np.repeat((lists.time * 1e6).astype(np.int64), places),
            np.tile(np.arange(places), len(user)),
            lists.is_taken.ravel(),
            readers.rate(np.arange(num_users), np.zeros(num_users, np.int64)),
        )

    @cached_property
    def histories(self) -> Histories:
        """All reactions, a row per user, a second per place after their lists."""
        taken = np.flatnonzero(self.is_taken)
        time = self.time[taken] + (self.place[taken] + 1) * 1_000_000
        ends = np.cumsum(np.bincount(self.user[taken], minlength=self.num_users))
        starts = np.concatenate(([0], ends[:-1]))
        kind = np.ones(len(taken), np.int16)
        return Histories(self.item[taken].astype(np.int32), time, kind, starts, ends)

    def before(self, nights: tuple[int, ...]) -> Histories:
        """Histories of all users at each night, with what they were shown before."""
        row, position = self.histories.gather()
        ends, pairs, ignored, last = [], [], [], []
        for number, night in enumerate(nights):
            past = row[self.histories.time[position] < night * DAY]
            ends.append(self.histories.starts + np.bincount(past, minlength=self.num_users))
            own = np.flatnonzero(self.time < night * DAY)
            key, pair = np.unique(self.user[own] * WIDTH + self.item[own], return_inverse=True)
            newest = np.zeros(len(key), np.int64)
            newest[pair] = self.time[own]
            pairs.append(key + number * self.num_users * WIDTH)
            ignored.append(np.bincount(pair, ~self.is_taken[own], len(key)))
            last.append(newest)
        key = np.concatenate(pairs)
        sets = ItemSets.of(key // WIDTH, key % WIDTH, self.num_users * len(nights))
        own_ignored = np.concatenate(ignored).astype(np.int32)
        shown = ShownItems(sets.item_index, sets.starts, sets.ends, own_ignored, np.concatenate(last))
        return replace(
            self.histories,
            starts=np.tile(self.histories.starts, len(nights)),
            ends=np.concatenate(ends),
            request_time=np.repeat(np.array(nights) * DAY, self.num_users),
            user=np.tile(np.arange(self.num_users), len(nights)),
            shown=shown,
        )

    def after(self) -> ShownLists:
        """What users were shown in the horizon of each of `NIGHTS`."""
        night = (self.time // DAY - NIGHTS[0]) // HORIZON
        own = night >= 0
        request = night[own] * self.num_users + self.user[own]
        return ShownLists.of(request, self.item[own].astype(np.int32), self.is_taken[own])


def measure(
    bias: Bias, num_users: int, seed: int, kinds: list[str] | None
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """True rates [users] of the lists of each encoder and ranker; kinds: besides `retrieved`, None: all."""
    shown = Shown.drawn(bias, num_users, seed)
    old = shown.time < NIGHTS[0] * DAY
    looks = PlaceLooks.fit(shown.user[old], shown.item[old], shown.place[old], shown.is_taken[old]).by_place
    looked = without_chance(looks_at_items(shown.item[old], looks[shown.place[old]], NUM_ITEMS))
    looked = np.where(looked > 0, looked, looked[looked > 0].mean())
    past = replace(shown.before(NIGHTS[:1]), request_time=None, shown=None)
    _, position = past.gather()
    weight = np.ones(len(past.item_index), np.float32)
    weight[position] = inverse_looks(past.item_index[position].astype(np.int64), looked)
    after = shown.after()
    for name, own in (("off", None), ("ips", weight)):
        rankings = Rankings(shown, trained(replace(past, weight=own), seed), past, seed)
        if kinds is None:
            yield (name, "nothing: retrieval alone"), rankings.judged(None)
        yield (name, "retrieved"), rankings.judged(rankings.lists(after, with_shown=False))
        for kind, lists in learned(rankings.lists(after, with_shown=True), after):
            if kinds is None or kind in kinds:
                yield (name, kind), rankings.judged(lists)


def learned(lists: Retrieved, after: ShownLists) -> Iterator[tuple[str, Retrieved]]:
    """Other lists to learn from."""
    own, number = after.learned_from(lists)
    yield "shown", own
    late = own.select(np.arange(len(own)) >= len(own) - number)
    assert late.night is not None
    of_late = (late.night // DAY - NIGHTS[0]) // HORIZON * (len(lists) // len(NIGHTS)) + late.user
    whole = replace(lists, compared=lists.items > 0)
    changes: dict[str, Any] = {
        name: np.concatenate([getattr(whole, name), getattr(late, name)])
        for name in ("relevant", "num_relevant", "compared")
    }
    rows = np.concatenate([np.arange(len(lists)), of_late])
    yield "shown and all", replace(whole.select(rows), **changes)


def trained(past: Histories, seed: int) -> AttentionRecommender:
    """The encoder."""
    result = fit(
        histories=past,
        encoder=EncoderSettings(dim=32, num_blocks=1, num_heads=1, dropout=0.1, similarity="cosine"),
        train=TrainSettings(epochs=8, batch_histories=32, learning_rate=0.003),
        num_items=NUM_ITEMS,
        num_event_types=1,
        max_length=50,
        seed=seed,
        max_steps=8 * max(1, round(len(past) / 32)),
    )
    return AttentionRecommender(result.model)


@dataclass(frozen=True)
class Rankings:
    """Rankers behind one encoder."""

    shown: Shown
    encoder: AttentionRecommender
    past: Histories
    seed: int

    def stage(self) -> SecondStage:
        """Untrained."""
        torch.manual_seed(self.seed)
        vectors = functional.normalize(self.encoder.encoder.item_vectors().detach().float(), dim=-1)
        vectors[0] = 0
        ranker = Ranker(RANKER, vectors, 1, (*FEATURES, *SHOWN_FEATURES))
        statistics = ItemStatistics.of(self.past, NUM_ITEMS).recounted(self.shown.histories)
        return SecondStage(ranker, statistics, np.arange(WIDTH, dtype=np.int32))

    def lists(self, after: ShownLists, *, with_shown: bool) -> Retrieved:
        """Candidates of all nights; with_shown: what was shown is among them."""
        requests = self.shown.before(NIGHTS)
        assert requests.user is not None
        two_stage = TwoStage(self.encoder, self.stage(), exclude_seen=False)
        further = after.candidates(len(requests)) if with_shown else None
        candidates = two_stage.candidates(requests, further)
        taken = after.item[after.is_taken], after.request[after.is_taken]
        return Retrieved.of(requests, *candidates, *taken, requests.user, requests.request_time)

    def judged(self, lists: Retrieved | None) -> np.ndarray:
        """[users] mean true rate of the ten best items, of a ranker that learned from lists, or by retrieval alone."""
        system: AttentionRecommender | TwoStage = self.encoder
        if lists is not None:
            system = TwoStage(
                self.encoder, fit_ranker(self.stage(), lists, self.seed).stage, exclude_seen=False
            )
        items, _ = system.recommend(self.shown.before((END,)), 10, exclude_seen=False)
        return np.asarray(np.take_along_axis(self.shown.truth, items.astype(np.int64) - 1, 1).mean(axis=1))


if __name__ == "__main__":
    main()
