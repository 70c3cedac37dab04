"""Proven reasons of trained models: how many recommendations have one, what they cost, and their sets against other events.

python tests/benchmarks/bench_proofs.py                       (data/demo, 100 users: minutes after `make train`)
python tests/benchmarks/bench_proofs.py data/ml-1m --users 300

Each argument is the folder `<data_dir>/<name>` of a configuration that was run up to `train`. A random sample of its users of
more than three events, each with the whole history, gets its 10 best unseen items by the encoder and an exact index. Cost:
processor seconds of one thread, the least of two rounds. Sets: the proof of the first item, or its three strongest events by
"balanced" where nothing is proven, against as many other events of the history: those of the largest exact single drops, the most
like the item by the cosine of item vectors, the newest, random ones. Measured are whether the item leaves the list without them
(the whole history's items stay excluded), and the score that it keeps, over the mean score with the whole history. Differences
are paired over users, with 95 % bootstrap intervals. Prints Markdown tables.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.encoder.encoder import AttentionRecommender, Encoder  # noqa: E402
from models.evaluation.bootstrap import UserMeans, bootstrap, paired_difference  # noqa: E402
from models.explanation.contributions import contributions, events_to_try  # noqa: E402
from models.explanation.faithfulness import controls  # noqa: E402
from models.histories import Float32, Histories, Int32  # noqa: E402
from models.recommendation.engine import RecommendationEngine  # noqa: E402
from models.recommendation.proofs import MOST_EVENTS, Trials, proofs_of, still_seen  # noqa: E402
from models.recommendation.rules import Rules, Traits  # noqa: E402
from models.retrieval.build import build_index  # noqa: E402
from tests.benchmarks.bench_because import K, load, seconds  # noqa: E402

ROUNDS, RESAMPLES = 2, 1000
METHODS: tuple[Literal["balanced", "proven"] | None, ...] = (None, "balanced", "proven")


class Sample(NamedTuple):
    """Users of a trained model, and the engine that answers them."""

    encoder: Encoder
    engine: RecommendationEngine
    histories: Histories
    num_events: Float32

    @classmethod
    def of(cls, run: Path, num_users: int, seed: int) -> "Sample":
        """Users of a run."""
        encoder, histories, num_events = load(run, num_users, seed)
        vectors = encoder.item_vectors().detach().numpy()[1:]
        index = build_index(vectors, np.arange(1, encoder.num_items + 1, dtype=np.int32))
        recommender = AttentionRecommender(encoder)
        engine = RecommendationEngine(recommender, index, num_events[None], Traits(num_events))
        histories = histories.select(histories.lengths > MOST_EVENTS).compact()
        return cls(encoder, engine, histories, num_events)


def costs(sample: Sample) -> dict[str | None, float]:
    """Milliseconds per user of lists without reasons and with those of each method."""
    least: dict[str | None, float] = dict.fromkeys(METHODS, float("inf"))
    for _ in range(ROUNDS):
        for method in METHODS:
            work = partial(sample.engine.answer, sample.histories, K, Rules(), because=method)
            least[method] = min(least[method], seconds(work))
    return {method: 1e3 * took / len(sample.histories) for method, took in least.items()}


def sets_of(sample: Sample, trials: Trials, items: Int32, seed: int) -> tuple[Int32, dict[str, Int32]]:
    """Events of the proof of each item [users, K], and sets of events [users, MOST_EVENTS] for the first item, by name.

    Events are places in their rows, from 0; -1: none.
    """
    encoder, histories, first = sample.encoder, sample.histories, items[:, 0]
    windows = histories.last(encoder.max_length)
    before = (histories.lengths - windows.lengths)[:, None]
    weights = contributions(encoder, histories, items, "balanced")
    columns, _ = events_to_try(weights, windows.lengths, MOST_EVENTS)
    places = np.where(columns < 0, -1, columns + before[:, None]).astype(np.int32)
    chosen = proofs_of(trials, np.arange(len(items)), items, places)
    size = chosen.sum(-1).astype(np.int32)
    is_own = np.where(
        chosen[:, 0].any(-1, keepdims=True), chosen[:, 0], np.arange(2 * MOST_EVENTS) < MOST_EVENTS
    )
    own_first = np.argsort(~is_own, axis=1, kind="stable")[:, :MOST_EVENTS]
    own = np.take_along_axis(np.where(is_own, places[:, 0], -1), own_first, 1)
    weightings = controls(encoder, histories, first, sample.num_events, seed)
    orders = {
        "single drops": contributions(encoder, windows, items[:, :1], "exact")[:, 0],
        **{name: weightings[name] for name in ("item_cosine", "recency", "random")},
    }
    is_taken = np.arange(MOST_EVENTS) < (own >= 0).sum(1)[:, None]
    sets = {"proven": own}
    for name, order in orders.items():
        is_there = np.arange(order.shape[1]) < windows.lengths[:, None]
        best = np.argsort(np.where(is_there, -order, np.inf), axis=1, kind="stable")[:, :MOST_EVENTS]
        sets[name] = np.where(is_taken, best + before, -1).astype(np.int32)
    return size, sets


def measured(trials: Trials, sample: Sample, first: Int32, sets: Mapping[str, Int32]) -> list[str]:
    """Lines of a table of the sets of the first item [users], the first set against each."""
    rows, engine = np.arange(len(first)), sample.engine
    nothing = np.full((len(first), MOST_EVENTS), -1, np.int32)
    values = {}
    for name, places in {"": nothing, **sets}.items():
        vectors = engine.recommender.encode(sample.histories.without_events(places))
        score = engine.index.scores_of(vectors, first[:, None])[:, 0].astype(np.float64)
        values[f"{name} score"] = score
        values[f"{name} leaves"] = trials.leaves(rows, first, places).astype(np.float64)
    whole = values[" score"].mean()
    values = {name: part / whole if name.endswith("score") else part for name, part in values.items()}
    means = UserMeans.of(values, rows, len(rows))
    drawn, column = bootstrap(means, RESAMPLES, 0), {name: number for number, name in enumerate(values)}
    lines = ["| set | leaves | score kept | leaves: proven minus it | score kept: proven minus it |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in sets:
        cells = [f"{means.over_users[column[f'{name} {kind}']]:.3f}" for kind in ("leaves", "score")]
        for kind in ("leaves", "score"):
            one, other = column[f"proven {kind}"], column[f"{name} {kind}"]
            mean, each = means.over_users[one] - means.over_users[other], drawn[:, one] - drawn[:, other]
            found = paired_difference(float(mean), each, lower_is_better=kind == "score")
            spelt = f"{found.difference:.3f} [{found.low:.3f}, {found.high:.3f}] {found.verdict}"
            cells.append("" if name == "proven" else spelt)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def report(run: Path, num_users: int, seed: int) -> None:
    """Print the tables of one run."""
    sample = Sample.of(run, num_users, seed)
    settings, lengths = sample.encoder.settings, sample.histories.lengths
    answer_of = partial(sample.engine.answer, k=K, rules=Rules())
    trials, items = (
        Trials(still_seen(sample.histories), None, answer_of),
        answer_of(sample.histories).item_index,
    )
    took = costs(sample)
    size, sets = sets_of(sample, trials, items, seed)
    print(
        f"\n## {run.name}: {settings.block}, {settings.num_blocks} layers of {settings.dim}\n"
        f"{len(lengths):,} users with {np.minimum(lengths, sample.encoder.max_length).mean():.0f} interactions in the mean, "
        f"{sample.encoder.num_items:,} items. A user takes {took[None]:.2f} ms without reasons, {took['balanced']:.2f} with "
        f"`balanced`, {took['proven']:.1f} with `proven`.\n\n| | 1 event | 2 | 3 | none |\n| --- | --- | --- | --- | --- |"
    )
    for name, part in ((f"all {K} items", size), ("the first item", size[:, 0])):
        print(f"| {name} | {' | '.join(f'{(part == number).mean():.3f}' for number in (1, 2, 3, 0))} |")
    print("", *measured(trials, sample, items[:, 0], sets), sep="\n")


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", default=[Path("data/demo")], help="folders of runs")
    parser.add_argument("--users", type=int, default=100, help="users of each")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and what is drawn")
    chosen = parser.parse_args()
    for run in chosen.runs:
        if not (run / "train" / "latest").exists():
            parser.error(f"{run}: has no trained model; first `lookback run train` with its configuration")
    torch.set_num_threads(1)
    for run in chosen.runs:
        report(run, chosen.users, chosen.seed)


if __name__ == "__main__":
    main()
