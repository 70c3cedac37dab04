"""Rolling updates step by step: update, full training and no training, of an encoder on simulated and public logs.

    python tests/benchmarks/bench_update.py --log simulated --drift --steps 14
    python tests/benchmarks/bench_update.py --log deskdrop --steps 8 --folder /tmp/update-deskdrop

At the beginning of each step (a night, a week, a slice) the encoders learn the events up to it; they are judged on what each
user with a history takes until its end, of the items known by then: NDCG@10 with 95 % intervals over users, paired with the full
training.
Each update goes on from the one before. A full training has the epochs that validation on the step before the first one chose.
What is finished in the folder is not done again.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from features.simulation_settings import SimulationSettings
from models import checkpoint
from models.encoder.encoder import AttentionRecommender, Encoder
from models.evaluation.bootstrap import interval
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, metrics_of_ranks
from models.evaluation.ranks import rank_targets
from models.histories import Histories, Int64
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.loop import fit
from models.training.replay import with_replay
from models.training.result import FitResult, Initial
from models.training.validation import Validation
from pipeline.modelling.trainer import UPDATE_HISTORIES, UPDATE_PASSES
from tests.benchmarks import rolling_log
from tests.benchmarks.rolling_log import RollingLog

METRIC, DEFAULT_REPLAY = "ndcg@10", TrainSettings.replay
NONE, FULL, CHOSEN = "none", "full", "update, the best so far"
SMALL = EncoderSettings(dim=32, num_blocks=2, num_heads=2)
MOST_EPOCHS, PATIENCE = 30, 2


@dataclass(frozen=True)
class Case:
    """A log with the model and the training of all systems."""

    log: RollingLog
    encoder: EncoderSettings = SMALL
    rate: float = 0.001
    batch: int = 32
    """Histories of a step of the full training"""
    max_length: int = 50
    session: int | None = None


@dataclass(frozen=True)
class Update:
    """An update's settings that are tried."""

    passes: int = UPDATE_PASSES
    replay: float = DEFAULT_REPLAY
    rate: float = 1.0
    """Learning rate over that of the full training"""
    batch: int = UPDATE_HISTORIES

    @property
    def name(self) -> str:
        return f"update, {self.passes} passes, replay {self.replay:g}, rate x {self.rate:g}, {self.batch} histories"

    @classmethod
    def parse(cls, text: str) -> "Update":
        """Read PASSES:REPLAY:RATE:BATCH."""
        passes, replay, rate, batch = text.split(":")
        return cls(int(passes), float(replay), float(rate), int(batch))


@dataclass(frozen=True)
class Rolling:
    """Systems of a case, step by step, in a folder: <system>/<step>/step.json and the encoder's files."""

    case: Case
    folder: Path
    updates: tuple[str, ...]
    """Names of the updates that CHOSEN takes, at each step, the best of by the steps before"""
    given_epochs: int = 0
    """Epochs of a full training; 0: chosen by validation"""

    @property
    def steps(self) -> int:
        return len(self.case.log.moments) - 1

    @cached_property
    def epochs(self) -> int:
        """Epochs of a full training: the given ones, or those that validation on the step before the first one chose."""
        if self.given_epochs:
            return self.given_epochs
        path = self.folder / "epochs.json"
        if not path.exists():
            first, second = self.case.log.moments[:2]
            earlier = replace(self.case.log, moments=np.array([2 * first - second, first]))
            user, item = earlier.taken(0)
            users, request = np.unique(user, return_inverse=True)
            night = int(earlier.moments[0])
            rows = earlier.until(night).select(users)
            judged = Validation(rows, item.astype(np.int32), not earlier.buys_again, request)
            chosen = self._train(earlier.until(night), night, MOST_EPOCHS, validation=judged)
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"epochs": chosen.best_epoch, "run": len(chosen.history)}))
        return int(json.loads(path.read_text())["epochs"])

    def run(self, system: str | Update) -> None:
        """Train and judge a system at every step that is not there yet."""
        name = system if isinstance(system, str) else system.name
        for step in range(self.steps):
            place = self.folder / name / str(step)
            if (place / "step.json").exists():
                continue
            place.mkdir(parents=True, exist_ok=True)
            before = self.folder / name / str(step - 1) if step else self.folder / FULL / "0"
            started = time.process_time()
            trained = self._trained(system, step, before)
            seconds = time.process_time() - started
            if trained is not None:
                checkpoint.save_model(trained, place)
            encoder = trained or checkpoint.load_model(before)
            if trained is None:
                checkpoint.save_model(encoder, place)
            record = {"seconds": seconds if step else 0.0, **self._judged(encoder, step)}
            (place / "step.json").write_text(json.dumps(record))
            print(f"{name}: step {step + 1} of {self.steps}, {seconds:.1f} s", file=sys.stderr, flush=True)

    def records(self, name: str) -> list[dict[str, Any]]:
        """What was found at each step."""
        if name == CHOSEN:
            return self._best_so_far()
        return [
            json.loads((self.folder / name / str(step) / "step.json").read_text())
            for step in range(self.steps)
        ]

    def _best_so_far(self) -> list[dict[str, Any]]:
        """Records of the update with the highest NDCG@10 of the steps before, all of them trained."""
        each = {name: self.records(name) for name in self.updates}
        sums, chosen = dict.fromkeys(self.updates, 0.0), []
        for step in range(self.steps):
            best = max(self.updates, key=lambda name: sums[name])
            seconds = sum(own[step]["seconds"] for own in each.values())
            chosen.append(each[best][step] | {"seconds": seconds})
            for name, own in each.items():
                sums[name] += sum(own[step]["all"])
        return chosen

    def _trained(self, system: str | Update, step: int, before: Path) -> Encoder | None:
        """Encoder of a step; None: that of the step before, or at the first step that of the full training."""
        log, night = self.case.log, int(self.case.log.moments[step])
        if system == FULL:
            return self._train(log.until(night), night, self.epochs).model
        if not isinstance(system, Update) or not step:
            return None
        since = int(log.moments[step - 1])
        learned = with_replay(log.until(night), since, system.replay, 0)[1]
        return self._train(learned, night, system.passes, checkpoint.load_model(before), system).model

    def _train(
        self,
        histories: Histories,
        night: int,
        epochs: int,
        start: Encoder | None = None,
        update: Update | None = None,
        validation: Validation | None = None,
    ) -> FitResult:
        case, num_items = self.case, self.case.log.num_items(night)
        settings = TrainSettings(
            epochs=epochs,
            patience=PATIENCE,
            batch_histories=case.batch,
            learning_rate=case.rate,
            precision="fp32",
            compile="off",
        )
        initial = None
        if start is not None and update is not None:
            batch, rate = min(update.batch, case.batch), case.rate * update.rate
            settings = replace(settings, batch_histories=batch, learning_rate=rate)
            number = np.arange(num_items + 1, dtype=np.int32)
            initial = Initial(start, np.where(number <= start.num_items, number, 0).astype(np.int32))
        return fit(
            histories,
            encoder=case.encoder,
            train=settings,
            num_items=num_items,
            num_event_types=0,
            max_length=case.max_length,
            session=case.session,
            initial=initial,
            validation=validation,
        )

    def _judged(self, encoder: Encoder, step: int) -> dict[str, Any]:
        """Users who take something in a step, and their NDCG@10: of all items, of new ones and of old ones alone."""
        log = self.case.log
        user, item = log.taken(step)
        users, request = np.unique(user, return_inverse=True)
        known = np.arange(int(log.histories.item_index.max()) + 1, dtype=np.int32)
        known[encoder.num_items + 1 :] = 0
        histories = log.until(int(log.moments[step])).select(users).translate(known)
        rank = rank_targets(
            AttentionRecommender(encoder),
            histories,
            known[item],
            1,
            exclude_seen=not log.buys_again,
            request=request,
        ).rank
        rank[known[item] == 0] = np.inf
        is_new = item > log.num_items(int(log.moments[0]))
        record: dict[str, Any] = {"user": users.tolist()}
        for name, chosen in (
            ("all", np.ones(len(item), bool)),
            ("new items", is_new),
            ("old items", ~is_new),
        ):
            own = metrics_of_ranks(rank[chosen], (10,), request[chosen], len(users))[METRIC]
            record[name] = np.round(own, 6).tolist()
        return record


@dataclass(frozen=True)
class Comparison:
    """Systems compared over all steps, or over some of the requests."""

    compared: SystemComparison

    @classmethod
    def of(
        cls, rolling: Rolling, names: Sequence[str], group: str = "all", step: int | None = None
    ) -> "Comparison":
        """group: "all", "new items" and "old items" of the records, or users as in RollingLog.groups."""
        steps = range(rolling.steps) if step is None else [step]
        of_users = {number: rolling.case.log.groups(number) for number in steps}
        column = group if group in ("all", "new items", "old items") else "all"

        def values(name: str) -> Iterator[tuple[Int64, Float64]]:
            records = rolling.records(name)
            for number in steps:
                user, own = np.array(records[number]["user"]), np.array(records[number][column], np.float64)
                kept = of_users[number][group][user] if group in of_users[number] else ~np.isnan(own)
                yield user[kept], own[kept]

        users = np.concatenate([user for user, _ in values(FULL)])
        own = ((name, {METRIC: np.concatenate([each for _, each in values(name)])}) for name in names)
        return cls(SystemComparison.of(own, users, 1000, 0))

    def value(self, name: str) -> float:
        return self.compared.values(name)[METRIC]

    def difference(self, name: str) -> str:
        """Paired difference from the full training with its interval."""
        paired = self.compared.paired(name, FULL)[METRIC]
        return f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"

    def ratio(self, name: str) -> str:
        """Ratio to the full training with its interval, over the same draws of users."""
        place, full = (self.compared.systems.index(each) for each in (name, FULL))
        column = self.compared.names.index(METRIC)
        ratios = self.compared.resampled[:, place, column] / self.compared.resampled[:, full, column]
        low, high = (float(end[0]) for end in interval(ratios[:, None]))
        return f"{self.value(name) / self.value(FULL):.3f} [{low:.3f}, {high:.3f}]"


def report(rolling: Rolling, updates: Sequence[str]) -> None:
    """Print three tables: by step, all systems, and by group of users and items."""
    main, names = updates[0], [NONE, FULL, *updates]
    pooled = Comparison.of(rolling, names)
    number, users = pooled.compared.num_targets, pooled.compared.num_users
    print(
        f"{number:,} lists of {users:,} users in {rolling.steps} steps; full: {rolling.epochs} epochs; {main}\n"
    )
    print(f"| step | lists | none | full | update | update minus full |\n|{' --- |' * 6}")
    for step in range(rolling.steps):
        own = Comparison.of(rolling, names, step=step)
        values = " | ".join(f"{own.value(name):.4f}" for name in (NONE, FULL, main))
        print(f"| {step + 1} | {own.compared.num_targets:,} | {values} | {own.difference(main)} |")
    print(f"\n| system | NDCG@10 | minus full | ratio | CPU seconds a step | share |\n|{' --- |' * 6}")
    seconds = {name: np.mean([each["seconds"] for each in rolling.records(name)[1:]]) for name in names}
    for name in names:
        share = seconds[name] / seconds[FULL]
        cells = (f"{pooled.value(name):.4f}", pooled.difference(name), pooled.ratio(name))
        print(f"| {name} | {' | '.join(cells)} | {seconds[name]:.1f} | {share:.3f} |")
    print(f"\n| group | lists | none | full | update | update minus full |\n|{' --- |' * 6}")
    for group in ("old items", "new items", *rolling.case.log.groups(0)):
        own = Comparison.of(rolling, names, group)
        if own.compared.num_users > 1:
            values = " | ".join(f"{own.value(name):.4f}" for name in (NONE, FULL, main))
            print(f"| {group} | {own.compared.num_targets:,} | {values} | {own.difference(main)} |")


def case_of(asked: argparse.Namespace) -> Case:
    """The case of a log by its name."""
    if asked.log == "simulated":
        drift = asked.days - asked.steps // 2 - 1 if asked.drift else 0
        settings = SimulationSettings(
            num_users=asked.users,
            num_items=500,
            num_events=asked.events,
            num_days=asked.days,
            drift_day=drift,
        )
        return Case(rolling_log.simulated(settings, asked.steps), rate=0.003, batch=16)
    logs: dict[str, Callable[[int], RollingLog]] = {
        "deskdrop": rolling_log.deskdrop,
        "ta-feng": rolling_log.ta_feng,
        "ml-1m": rolling_log.ml_1m,
    }
    log = rolling_log.of_some_users(logs[asked.log](asked.steps), asked.users)
    if asked.log == "ta-feng":
        encoder = replace(SMALL, similarity="cosine", time_bias=True, positions="relative")
        return Case(log, encoder, rate=0.002, batch=64, session=0)
    if asked.log == "ml-1m":
        return Case(log, replace(SMALL, similarity="cosine"), batch=64, max_length=100)
    return Case(log, replace(SMALL, dropout=0.3))


def main() -> None:
    """Run what is missing in the folder, then print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", choices=("simulated", "deskdrop", "ta-feng", "ml-1m"), default="simulated")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--users", type=int, default=400, help="at most, drawn at random")
    parser.add_argument("--events", type=int, default=20_000, help="of the simulated log")
    parser.add_argument("--days", type=int, default=60, help="of the simulated log")
    parser.add_argument("--drift", action="store_true", help="tastes of the simulated log change halfway")
    parser.add_argument("--epochs", type=int, default=0, help="of a full training; 0: chosen by validation")
    parser.add_argument("--choose", action="store_true", help="report on the update that was best so far")
    parser.add_argument("--folder", type=Path, help="results, kept; without it a temporary one")
    parser.add_argument(
        "--update", nargs="*", type=Update.parse, default=[Update()], help="PASSES:REPLAY:RATE:BATCH"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        updates = tuple(update.name for update in asked.update)
        rolling = Rolling(case_of(asked), asked.folder or Path(temporary), updates, asked.epochs)
        for system in (FULL, NONE, *asked.update):
            rolling.run(system)
        report(rolling, [CHOSEN, *updates] if asked.choose else updates)


if __name__ == "__main__":
    main()
