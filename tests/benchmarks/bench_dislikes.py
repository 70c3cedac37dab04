"""What dislikes are worth: MovieLens-1M, temporal, ratings of at most 2 as dislikes, three trainings of one configuration.

python tests/benchmarks/bench_dislikes.py [--config FILE] [--epochs 2] [--users 0.05] [--seed S] [--set key=value]…

--epochs: of encoder and ranker, at most; --users: a random share of the users. The defaults are a try of a minute or two;
--users 1 --epochs 60 is the whole.

Trained on (1) every rating as a positive, (2) ratings without the dislikes, (3) dislikes used. All three, encoder and ranker
each, are evaluated on the same held-out events, one request each: NDCG@10 of those that are no dislikes, `dislike_rate@10` of the
dislikes, items of the history masked. Prints a Markdown table with 95 % bootstrap intervals over users and paired differences
of the last from the others, then one JSON object. Artifacts go to a temporary folder; the data is looked for in
LOOKBACK_SHARED_DATA.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from features.histories.jagged import JaggedHistories  # noqa: E402
from features.histories.numbering import ItemNumbering  # noqa: E402
from models.encoder.encoder import AttentionRecommender  # noqa: E402
from models.evaluation.comparison import SystemComparison  # noqa: E402
from models.evaluation.metrics import Float64, hit_rate, ndcg  # noqa: E402
from models.evaluation.ranks import rank_targets  # noqa: E402
from models.histories import Float32, Histories, Int32  # noqa: E402
from models.ranking.training import fit_ranker  # noqa: E402
from models.ranking.two_stage import TwoStage  # noqa: E402
from models.recommender import Recommender  # noqa: E402
from models.topk import recommend_in_chunks  # noqa: E402
from pipeline.config import Config, load_config  # noqa: E402
from pipeline.dataset.dataset import Dataset, rows  # noqa: E402
from pipeline.dataset.evaluation_targets import targets_of  # noqa: E402
from pipeline.dataset.protocol import Protocol  # noqa: E402
from pipeline.dataset.targets import RankedTargets  # noqa: E402
from pipeline.modelling.trainer import Trainer  # noqa: E402
from pipeline.stages import rank  # noqa: E402

SHARED = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data")) / "ml-1m"
FILES = {"events": "ratings.dat", "items": "movies.dat", "users": "users.dat"}
K, BELOW, RESAMPLES = 10, 2.5, 1000
POSITIVE, LEFT_OUT, USED = "every rating positive", "dislikes left out", "dislikes used"


@dataclass
class Reading:
    """Recommender in the numbering of the targets that reads histories in its own form; masks are those of the whole ones."""

    system: Recommender
    numbers: Int32
    """[num_items + 1], common item -> the system's, 0 where unknown"""
    read: Callable[[Histories], Histories]

    def __post_init__(self) -> None:
        self.num_items = len(self.numbers) - 1

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1] scores, -inf for unknown items."""
        own = self.read(histories.compact()).translate(self.numbers)
        scores = self.system.score_items(own)[:, self.numbers]
        scores[:, self.numbers == 0] = -np.inf
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


def features_of(config: str, settings: list[str]) -> tuple[Config, Dataset]:
    """Configuration and dataset with dislikes."""
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline", "run", "features", "--config", config, *options]
    subprocess.run(command, check=True, stdout=sys.stderr)
    path = [*command[:3], "path", *command[4:]]
    done = subprocess.run(path, check=True, capture_output=True, text=True)
    return load_config(config, settings), Dataset.open(Path(done.stdout.splitlines()[-1]))


def sampled(path: Path, share: float, target: Path) -> None:
    """Write the ratings of a share of the users, drawn by their number."""
    chosen = np.random.default_rng(0).random(10_000) < share
    with path.open("rb") as source, target.open("wb") as kept:
        kept.writelines(line for line in source if chosen[int(line.partition(b"::")[0])])


def all_positive(dataset: Dataset) -> Dataset:
    """The log as if no event were a dislike."""
    histories = dataset.histories
    plain = replace(histories, event_type=np.zeros_like(histories.event_type), dislikes=None)
    own = replace(dataset, histories=plain)
    own.__dict__["event_types"] = []
    return own


def without_dislikes(dataset: Dataset) -> Dataset:
    """The log without its dislikes, the split at the same times."""
    histories, split = dataset.histories, dataset.split
    kept = ~histories.is_dislike(slice(None))
    before = np.concatenate(([0], np.cumsum(kept)))
    offsets = np.asarray(histories.offsets)
    liked = rows(histories, offsets[:-1], offsets[1:]).without_dislikes()
    assert liked.value is not None
    flat = JaggedHistories(before[offsets], liked.item_index, liked.time, liked.event_type, liked.value)
    ends = {name: before[getattr(split, name)] for name in ("train_end", "validation_end", "test_end")}
    return replace(dataset, histories=flat, split=replace(split, **ends))


def systems(
    config: Config, name: str, dataset: Dataset, read: Callable[[Histories], Histories], folder: Path
) -> Iterator[tuple[str, Reading]]:
    """Encoder and ranker trained on a dataset."""
    began = time.monotonic()
    checkpoints = folder / name.replace(" ", "_")
    trained = Trainer(config, dataset, checkpoints).fit_split()
    encoder = trained.result.model.eval()
    print(
        f"{name}: epoch {trained.selection.best_epoch}, {time.monotonic() - began:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    common = ItemNumbering.of_known(np.arange(dataset.num_items + 1) > 0)
    numbers = common.inverse().compose(trained.numbering).new
    recommender = AttentionRecommender(encoder)
    yield f"{name}, encoder", Reading(recommender, numbers, read)
    ctx = SimpleNamespace(config=config, dataset=dataset, protocol=Protocol.of(config, dataset))
    prepared = rank._prepared(cast("Any", ctx), encoder, trained.numbering)
    fitted = fit_ranker(prepared.stage, prepared.learned, config.seed)
    print(f"{name}: ranker, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    yield f"{name}, ranker", Reading(TwoStage(recommender, fitted.stage, exclude_seen=True), numbers, read)


def ranks(system: Reading, targets: RankedTargets) -> Float64:
    """[targets] ranks among all items."""
    return rank_targets(
        system, targets.histories, targets.item, 1, exclude_seen=True, request=targets.request
    ).rank


def evaluated(
    config: Config, dataset: Dataset, folder: Path
) -> tuple[SystemComparison, SystemComparison, dict[str, int]]:
    """NDCG of the liked, dislike rates, and numbers of targets, by system."""
    common = ItemNumbering.of_known(np.arange(dataset.num_items + 1) > 0)
    trained = dataset.occurring(dataset.training_rows(with_validation=False).without_dislikes())
    both = [
        targets_of(config, dataset, "test", common, trained=trained, exclude_seen=True, dislikes=dislikes)
        for dislikes in (False, True)
    ]
    liked, disliked = (targets.select(targets.warm) for targets in both)
    logs: dict[str, tuple[Dataset, Callable[[Histories], Histories]]] = {
        POSITIVE: (
            all_positive(dataset),
            lambda own: replace(own, event_type=np.zeros_like(own.event_type), dislikes=None),
        ),
        LEFT_OUT: (without_dislikes(dataset), Histories.without_dislikes),
        USED: (dataset, lambda own: own),
    }
    values: dict[str, tuple[Float64, Float64]] = {}
    for name, (log, read) in logs.items():
        for label, system in systems(config, name, log, read, folder):
            values[label] = ndcg(ranks(system, liked), K), hit_rate(ranks(system, disliked), K)
    of_liked = ((label, {f"ndcg@{K}": own}) for label, (own, _) in values.items())
    of_disliked = ((label, {f"dislike_rate@{K}": own}) for label, (_, own) in values.items())
    return (
        SystemComparison.of(of_liked, liked.user, RESAMPLES, config.seed),
        SystemComparison.of(of_disliked, disliked.user, RESAMPLES, config.seed),
        {"liked": len(liked), "disliked": len(disliked)},
    )


def show(compared: tuple[SystemComparison, SystemComparison], counts: dict[str, int], about: str) -> None:
    """Print a Markdown table and one JSON object."""
    print(f"{about}; {counts['liked']:,} liked and {counts['disliked']:,} disliked events held out\n")
    names = [systems.names[0] for systems in compared]
    print(f"| system | {' | '.join(names)} | {' | '.join(f'{USED} minus it, {name}' for name in names)} |")
    print(f"| --- |{' --- |' * 4}")
    found: dict[str, Any] = {"about": about, **counts, "systems": {}}
    for label in compared[0].systems:
        cells, differences = [], []
        own: dict[str, Any] = {}
        best = f"{USED}, {label.rpartition(', ')[2]}"
        for name, systems in zip(names, compared, strict=True):
            low, high = systems.intervals(label)[name]
            cells.append(f"{systems.values(label)[name]:.4f} [{low:.4f}, {high:.4f}]")
            own[name] = [systems.values(label)[name], low, high]
            if label == best:
                differences.append("")
                continue
            paired = systems.paired(best, label)[name]
            differences.append(f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]")
            own[f"{name} difference"] = [paired.difference, paired.low, paired.high]
        print(f"| {label} | {' | '.join(cells)} | {' | '.join(differences)} |")
        found["systems"][label] = own
    print(json.dumps(found))


def main() -> None:
    """Train and evaluate the three models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="pipeline/configs/ml-1m.toml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--users", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = [
            *(f"{section}.path={SHARED / name}" for section, name in FILES.items()),
            *arguments.set,
            f"data_dir={folder / 'data'}",
            f"events.dislike_below={BELOW}",
            "evaluate.targets=successive",
            "score.exclude_seen=true",
            "ranker.use=always",
            f"seed={arguments.seed}",
        ]
        settings += [f"{section}.epochs={arguments.epochs}" for section in ("train", "ranker")]
        if arguments.users < 1:
            log = load_config(arguments.config, settings).events.path
            sampled(Path(str(log)), arguments.users, folder / "ratings.dat")
            settings.append(f"events.path={folder / 'ratings.dat'}")
        config, dataset = features_of(arguments.config, settings)
        *compared, counts = evaluated(config, dataset, folder)
        show(
            cast("Any", compared),
            counts,
            f"{arguments.config}, users {arguments.users:g}, epochs at most {config.train.epochs}, seed {arguments.seed}",
        )


if __name__ == "__main__":
    main()
