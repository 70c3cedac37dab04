"""The page from small fabricated stage folders: what it says, that it stands alone, that raw text cannot break it."""

import datetime
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.histories.splits import Split
from features.profiling import drift, profile
from features.settings import EventSettings
from pipeline.config import Config
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.monitoring.experiment import ArmRow, Plan, Readout
from pipeline.monitoring.series import COLUMNS
from pipeline.orchestration.context import Context
from pipeline.reporting import charts
from pipeline.sections import ReportConfig
from pipeline.stages import report
from tests.evaluation_reports import off_policy, staleness

DAY = 86_400_000_000
LENGTHS = (6, 20, 7, 2)
NUM_ITEMS = 23
HOSTILE = "<script>alert('&')</script>"


class Tracked:
    """Stands for the plan of what to log."""

    def __init__(self) -> None:
        self.artifacts: list[str] = []

    def artifact(self, name: str) -> None:
        self.artifacts.append(name)


class Page(HTMLParser):
    """Tags, text and charts of a page; checks that what opens is closed."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.charts: list[str | None] = []
        """Titles of the charts' figures."""
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            if self.tags[-1][1].get("type") == "application/json":
                self.charts.append(json.loads(data)["layout"].get("title"))
        elif self.open[-1:] != ["style"]:
            self.words.append(data)


PUBLISHED = "the published system is the model: it is not shown to be worse than EASE"


def manifest(folder: Path, settings: dict[str, Any] | None = None, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "summary": f"{folder.name} is done",
        "seconds": 1.5,
        "peak_bytes": 2e9,
        "fingerprint": "abc123",
    }
    content |= {"settings": settings or {}, "rows_left_out": {}, "rows_in": 0, "rows_out": 0} | more
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def source(path: str, rows_in: int, rows_out: int, day: str) -> dict[str, Any]:
    counts = {
        "rows_in": rows_in,
        "rows_out": rows_out,
        "rows_left_out": {"bad_timestamp": rows_in - rows_out},
    }
    return counts | {"paths": [path], "earliest": day, "latest": day}


def ingest(root: Path) -> Path:
    folder = manifest(
        root / "ingest",
        rows_in=40,
        rows_out=36,
        rows_left_out={"bad_timestamp": 4},
        sources=[source("log.csv", 40, 36, "1970-01-01T00:00:00Z")],
        changed_sources=[{"path": "log.csv", "before": "a", "now": "b"}],
        removed_sources=[],
    )
    (folder / "quarantine").mkdir()
    row = {"source_path": "log.csv", "source_row": 7, "raw": HOSTILE, "reason": "bad_timestamp"}
    pl.DataFrame([row, row | {"source_row": 9, "raw": None}]).write_parquet(
        folder / "quarantine" / "one.parquet"
    )
    return folder


def features(root: Path, form: str) -> Path:
    """Of a log with two types (timed), one type and no items table (one type), none and no times (position)."""
    parts = {"train": 25, "validation": 5, "test": 5}
    folder = manifest(root / "features", num_users=4, num_items=NUM_ITEMS, rows_out=35, split_events=parts)
    offsets = np.concatenate(([0], np.cumsum(LENGTHS))).astype(np.int64)
    flat = np.arange(sum(LENGTHS))
    form = "timed" if form == "nights" else form
    event_types = {"timed": ["LIKE", "VIEW"], "one type": ["VIEW"], "position": []}[form]
    types = (1 + flat % len(event_types) if event_types else 0 * flat).astype(np.int16)
    item = (1 + flat % (NUM_ITEMS - 1)).astype(np.int32)
    log = JaggedHistories(offsets, item, flat * DAY, types, np.full(len(flat), np.nan, np.float32))
    log.save(folder)
    data = profile.profile(log, event_types, NUM_ITEMS, timed=form != "position")
    data.save(folder / "profile.json")
    everyone, every_item = np.ones(4, bool), np.ones(NUM_ITEMS + 1, bool)
    ends = offsets[1:]
    boundaries = (None, None) if form == "position" else (20 * DAY, 30 * DAY)
    Split("temporal", ends - 2, ends - 1, ends, everyone, everyone, every_item, *boundaries).save(
        folder / "split"
    )
    LogFacts.of(log).save(folder)
    (folder / "event_types.json").write_text(json.dumps(event_types))
    users = pl.DataFrame({"user_index": range(4), "user_id": ["ann", "bob", "cid", "dee"]})
    users.write_parquet(folder / "users.parquet")
    titles = [HOSTILE, None, *(f"Film {number}" for number in range(3, NUM_ITEMS + 1))]
    items = pl.DataFrame({"item_index": range(1, NUM_ITEMS + 1), "item_id": range(101, 101 + NUM_ITEMS)})
    items = items.with_columns(pl.lit(5).alias("num_events"))
    if form == "timed":
        items = items.with_columns(pl.lit(["Drama", "Old", "Long", "Mute"]).alias("categories"))
    title = pl.Series("title", [None] * NUM_ITEMS if form == "one type" else titles, dtype=pl.String)
    items.with_columns(title).write_parquet(folder / "items.parquet")
    if form == "timed":
        before = replace(data, num_events=1000, num_users=3, events_by_type={"LIKE": 1000})
        now = replace(data, num_events=1200, events_by_type={"LIKE": 1000, "VIEW": 200})
        counts = [
            pl.DataFrame({"item_id": [101, 102], "num_events": each}) for each in ([990, 10], [990, 210])
        ]
        drift.compare(counts[0], before, counts[1], now).save(folder / "drift.json")
    return folder


def train(root: Path) -> Path:
    folder = manifest(root / "train")
    epochs = {"epoch": [1, 2, 3], "loss": [7.0, 6.0, 5.5], "validation_ndcg@10": [0.1, 0.2, 0.15]}
    pl.DataFrame(epochs | {"seconds": [2.0] * 3, "targets_per_second": [1000.0] * 3}).write_parquet(
        folder / "history.parquet"
    )
    TrainingFacts(2, 40, 3, {}, {}, refit_validation_steps=12).save(folder)
    return folder


SYSTEMS = {"lookback": 0.21, "ease": 0.2, "popularity": 0.13}


def evaluate(root: Path, form: str) -> Path:
    """Folder of an evaluation; "one type": with one baseline, without cold targets, leak checks, tuning and cuts."""
    folder = manifest(root / "evaluate")
    systems = {"lookback": 0.21, "popularity": 0.13} if form == "one type" else SYSTEMS
    metrics = {name: {"ndcg@10": value, "hit_rate@10": 2 * value} for name, value in systems.items()}
    intervals = {
        name: {key: [value - 0.01, value + 0.01] for key, value in each.items()}
        for name, each in metrics.items()
    }
    difference = {"difference": 0.08, "low": 0.05, "high": 0.11, "share": 1.0, "verdict": "better"}
    content: dict[str, Any] = {
        "protocol": "temporal",
        "users": 3,
        "targets": 5,
        "targets_left_out": {"unknown_item": 2, "no_history": 0},
        "num_items": NUM_ITEMS,
        "exclude_seen": True,
        "metrics": metrics,
        "intervals": intervals,
        "paired": {"popularity": {"ndcg@10": difference, "hit_rate@10": difference}},
        "not_applicable": {"recent_popularity": "the log has no times"},
        "ranker": {"used": False, "setting": "never", "reason": "ranker.use is never"},
        "test_from": "2026-01-02T00:00:00+00:00",
        "targets_of_a_user": "successive",
        "ties": "order",
        "refit_validation": True,
        "resamples": 100,
        "apart": {
            "no_history": {"targets": 0, "included": False, "metrics": {}},
            "unknown_item": {"targets": 0, "included": False, "metrics": {}, "metrics_with_them": {}},
        },
        "leaks": {"checked": [], "by_construction": {}},
        "baselines": {},
        "index": {"recall@10": 1.0},
    }
    if form != "one type":
        content = with_everything(content)
        write_diagnostics(folder)
    if form == "nights":
        content = content | at_nights(content["metrics"])
    write_segments(folder, list(systems))
    (folder / "metrics.json").write_text(json.dumps(content))
    names = ["metrics", "recall", "by_history_length", "training", "distributions"]
    names += ["attention", "rolling"] if form != "one type" else []
    names += ["events", "gaps"] if form != "position" else []
    write_charts(folder, names)
    return folder


def write_charts(folder: Path, names: list[str]) -> None:
    """Empty charts, each titled by its name."""
    drawn = [
        {"name": name, "title": HOSTILE, "caption": HOSTILE}
        | {"figure": {"data": [], "layout": {"title": name, "height": 300}}}
        for name in names
    ]
    (folder / charts.CHARTS).write_text(json.dumps(drawn))


def at_nights(metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Keys of metrics.json that are of nights."""
    for values in metrics.values():
        values |= {"precision@10": 0.125, "map@10": 0.0625, "mrr@10": 0.5, "user_ndcg@10": 0.75}
    part = {"targets": 6, "metrics": metrics, "intervals": {name: {} for name in metrics}}
    some = {"ndcg@10": 0.01, "hit_rate@10": 0.02}
    return {
        "targets_of_a_user": "nightly",
        "ties": "strict",
        "exclude_seen": False,
        "targets_left_out": {"nothing_taken": 1200, "taken_again": 1},
        "nights": {
            "first": "2026-01-02T00:00:00+00:00",
            "last": "2026-01-23T00:00:00+00:00",
            "number": 4,
            "horizon_days": 7.0,
            "every_days": 7.0,
        },
        "cautions": ["96% of a user's events belong to one visit: split.ties is strict", HOSTILE],
        "repeats": part,
        "new": part | {"targets": 9},
        "by_targets": {"nightly": metrics, "successive": {"lookback": some}},
        "stale": asdict(staleness()),
        "off_policy": {
            system: {name: asdict(own) for name, own in found.items()}
            for system, found in off_policy()["off_policy"].items()
        },
        "off_policy_lists": asdict(off_policy()["off_policy_lists"]),
    }


def with_everything(content: dict[str, Any]) -> dict[str, Any]:
    """A metrics.json with all that an evaluation can have."""
    lists = {
        "coverage@10": 0.5,
        "novelty@10": 9.25,
        "repeats@10": 0.0,
        "full_lists@10": 1.0,
    }
    for name, values in content["metrics"].items():
        values.update(lists | {"ndcg@200": 2 * values["ndcg@10"], "recall@10": values["hit_rate@10"]})
        content["intervals"][name]["coverage@10"] = [0.4, 0.6]
    unsure = {
        "difference": 0.01,
        "low": -0.02,
        "high": 0.04,
        "share": 0.8,
        "verdict": "no significant difference",
    }
    unsure |= {"p_value": 0.2, "p_holm": 0.4, "p_bootstrap": 0.3, "p_bootstrap_holm": 0.6}
    better = content["paired"]["popularity"]["ndcg@10"] | {"p_value": 0.001, "p_holm": 0.002}
    some = {name: {"ndcg@10": value / 10, "hit_rate@10": value / 5} for name, value in SYSTEMS.items()}
    return content | {
        "paired": {
            "popularity": {"ndcg@10": better, "hit_rate@10": better},
            "ease": {"ndcg@10": unsure, "hit_rate@10": unsure},
        },
        "apart": {
            "no_history": {"targets": 0, "included": False, "metrics": {}},
            "unknown_item": {"targets": 2, "included": False, "metrics": some, "metrics_with_them": some},
        },
        "leaks": {
            "checked": ["order of every history"],
            "by_construction": {"training_after_first_target": 0.75},
        },
        "baselines": {
            "popularity": {"settings": {}, "grid": [{}]},
            "ease": {
                "settings": {"l2": 500.0},
                "grid": [{"l2": 100.0, "ndcg@10": 0.15}, {"l2": 500.0, "ndcg@10": 0.17}],
            },
        },
        "rolling": {
            "cuts": [
                {
                    "test_from": f"2026-{day}T00:00:00+00:00",
                    "users": 3,
                    "targets": 5,
                    "metrics": some,
                    "intervals": {},
                }
                for day in ("01-02", "02-03")
            ],
            "mean": some,
            "spread": some,
        },
    }


def write_segments(folder: Path, systems: list[str]) -> None:
    rows = [
        {"system": system, "segment": segment, "value": value, "targets": 1234, "users": 7}
        | {"ndcg@10": 0.25 - place / 10, "ndcg@10_low": 0.125, "ndcg@10_high": 0.375}
        for segment, value in (("history_length", "1-4"), ("history_length", "5-19"), ("user:age", HOSTILE))
        for place, system in enumerate(systems)
    ]
    pl.DataFrame(rows).write_parquet(folder / "segments.parquet")


def write_diagnostics(folder: Path) -> None:
    part = {"error": 0.0125, "bins": [{"mean_predicted": 0.1, "observed": 0.2, "targets": 5}]}
    person: dict[str, Any] = {
        "user_id": "ann",
        "targets": 3,
        "ndcg": 0.5,
        "history_length": 1234,
        "history": [HOSTILE, "Film 4"],
    }
    person |= {"target": "Film 5", "rank": 1.0, "recommended": None}
    row = {"kind": "position", "value": "1", "attention": 0.5, "interactions": 0.25, "lift": 2.0}
    content = {
        "k": 10,
        "targets": 5,
        "calibration": {
            "targets": 5,
            "log_loss": 1.5,
            "log_loss_of_chance": 3.0,
            "top_1": part,
            "list": part,
        },
        "attention": {"targets": 4, "rows": [row]},
        "repeats": {"targets": 5, "recommended": 0.25, "wanted": 0.125, "exclude_seen": False, "left_out": 0},
        "users": {"min_targets": 3, "best": [person], "worst": [person | {"user_id": "bob", "ndcg": 0.0}]},
    }
    (folder / "diagnostics.json").write_text(json.dumps(content))


def score(root: Path) -> Path:
    folder = manifest(root / "score", rows_out=6)
    (folder / "recommendations").mkdir()
    because = [{"item_id": 101, "weight": 0.75}, {"item_id": 102, "weight": 0.25}]
    rows = [
        {"user_id": user, "item_id": 110 + rank, "rank": rank, "score": -float(rank), "because": because}
        for user in ("ann", "bob", "cid")
        for rank in (1, 2)
    ]
    rows[0]["item_id"] = 999  # of an older model: no longer in the catalogue
    pl.DataFrame(rows).with_columns(pl.col("rank").cast(pl.Int32)).write_parquet(
        folder / "recommendations" / "part-0.parquet"
    )
    return folder


def monitor(root: Path) -> Path:
    """One night with a promise, a shadow's difference, an alert and an experiment."""
    folder = manifest(root / "monitor")
    night = datetime.datetime(2026, 3, 1, 23, 59, tzinfo=datetime.UTC)
    facts = {"log_time": night, "window_days": 1.0, "system": "delivered", "users": 1234}
    rows = [
        facts | {"metric": "ndcg@10", "value": 0.25, "low": 0.2, "high": 0.3},
        facts | {"metric": "hit_rate@10", "value": 0.5, "low": 0.4, "high": 0.6},
        facts | {"metric": "reached", "value": 0.875, "low": 0.8, "high": 0.9},
        facts | {"metric": "ndcg@10", "value": 0.125, "segment": "free"},
        facts | {"metric": "ndcg@10", "value": 0.0625, "arm": "challenger"},
    ]
    pl.DataFrame(rows, schema=COLUMNS).write_parquet(folder / "nights.parquet")
    alert = {"rule": "idle_log", "night": "", "value": 24.0, "threshold": 20.0, "message": "no event came"}
    difference = {"shadow": "popularity", "window_days": 1.0, "metric": "ndcg@10", "nights": 1, "users": 9}
    difference |= {"difference": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.01, "verdict": "better"}
    promised = {"night": night.isoformat(timespec="seconds"), "window_days": 1.0, "low": 0.22, "high": 0.32}
    content: dict[str, Any] = {"alerts": [alert], "differences": [difference], "promised": [promised]}
    rows_by_arm = [
        ArmRow(1.0, "ndcg@10", "champion", 1100, 0.3, 0.25, 0.35),
        ArmRow(1.0, "ndcg@10", "challenger", 134, 0.25, 0.2, 0.3, -0.05, -0.1, 0.01, 0.2),
    ]
    versions = {"champion": [1], "challenger": [2, 3]}
    plan = Plan(14, 0.015, 1234, 5)
    readout = Readout(f"e {HOSTILE}", "ndcg@10", 1.0, 1, versions, plan, 0.25, rows_by_arm)
    content["experiment"] = readout.as_json()
    (folder / "monitor.json").write_text(json.dumps(content))
    write_charts(folder, ["nights", "model_age"])
    return folder


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Page, Path, Context]:
    form = getattr(request, "param", "timed")
    tmp_path = tmp_path_factory.mktemp("report")
    inputs = {"ingest": ingest(tmp_path), "features": features(tmp_path, form), "train": train(tmp_path)}
    inputs |= {
        "evaluate": evaluate(tmp_path, form),
        "publish": manifest(tmp_path / "publish", system="lookback", system_reason=PUBLISHED),
        "score": score(tmp_path),
        "monitor": monitor(tmp_path),
    }
    folder = tmp_path / "report"
    folder.mkdir()
    columns: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3}
    config = Config(
        name="tiny", events=EventSettings(path="log.csv", columns=columns), report=ReportConfig(num_users=2)
    )
    nothing = cast("Any", None)
    context = Context(
        config, folder, inputs, {}, None, cast("Any", Tracked()), nothing, tmp_path, show_progress=False
    )
    report.build(context)
    path = folder / "report.html"
    return Page(path.read_text(encoding="utf-8")), path, context


def test_says_what_was_done(written: tuple[Page, Path, Context]) -> None:
    page, _, context = written
    for sentence in (
        "4 users, 23 items (22 with events) and 35 events, from 1970-01-01 to 1970-02-04",
        "events per user median 6, half of them 5 to 10, at most 20",
        "time between them median 24 hours, half of them 24 hours to 24 hours, at most 24 hours",
        "log.csv 40 36 bad timestamp 4 1970-01-01 1970-01-01",
        "1 file changed since the last ingest: log.csv",
        "left out by ingest: bad timestamp 4",
        "of type LIKE 18",
        "NDCG@10 0.2100 (95 % interval 0.2000 to 0.2200) and hit rate@10 0.4200.",
        "On the same targets it is better than popularity; shows no significant difference from EASE.",
        "The best epoch was 2 of 3; the model evaluated below was then trained again",
        "popularity NDCG@10 +0.0800 +0.0500 to +0.1100 – 0.002 better",
        "recent popularity was not evaluated: the log has no times",
        "On 5 held-out events of 3 users (temporal split), ranked among all 23 items, the model has NDCG@10",
        "Left out: 2 events on items unseen in training.",
        "By history length",
        "idle log : no event came.",
        "2026-03-01 23:59 1 delivered 1,234 0.875 0.5000 0.2500 [0.2000, 0.3000] [0.2200, 0.3200]",
        "Within 1 days, delivered minus popularity in ndcg@10: +0.1000 [+0.0500, +0.1500] over 1 nights: better.",
        f"Experiment e {HOSTILE} State: no verdict before the planned end: 1 of 14 nights, with which a difference of 0.0150 in",
        "Sample ratio: p = 0.25. Caution: challenger was made by several models: versions 2, 3. arm days after",
        "challenger 1 ndcg@10 134 0.2500 [0.2000, 0.3000] \u22120.0500 [\u22120.1000, +0.0100]",
        "publish is done",
    ):
        assert sentence in page.text
    assert context.manifest["rows_out"] == 2
    assert cast("Any", context.track).artifacts == ["report.html", "figures.html"]


def test_says_how_good_it_is(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    for sentence in (
        "Every system learned from training and validation events.",
        "system NDCG@10 hit rate@10 NDCG@200 lookback 0.2100 [0.2000, 0.2200] 0.4200 [0.4100, 0.4300] 0.4200 EASE 0.2000",
        "EASE NDCG@10 +0.0100 -0.0200 to +0.0400 0.6 0.4 no significant difference",
        "both corrected after Holm for 2 comparisons",
        f"{PUBLISHED[0].upper()}{PUBLISHED[1:]}.",
        "only if it beats EASE, the best baseline (here by +0.0100, interval -0.0200 to +0.0400: not shown ), and",
        "is not worse than the present champion by more than 0.005",
        "system coverage@10 novelty@10 lookback 0.500 [0.400, 0.600] 9.250 EASE",
        "2 targets on items without training events Not included in the metrics above.",
        "lookback 0.0210 0.0420 EASE 0.0200 0.0400",
        "Leak checks passed: order of every history.",
        "training events later than the earliest target 75 %",
        "2 cuts, the test parts beginning 2026-01-02, 2026-02-03.",
        "EASE l2 500 2 NDCG@10 0.1700",
        "popularity none 1",
    ):
        assert sentence in page.text
    assert "without any history" not in page.text, "there were none"


@pytest.mark.parametrize("written", ["nights"], indirect=True)
def test_speaks_of_nights(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    ends = "[–, –]"
    for sentence in (
        "On 5 user-nights of 3 users, 4 nights from 2026-01-02 to 2026-01-23, 7 days each (temporal split), ranked among all 23",
        "EASE. Caution: 96% of a user's events belong to one visit: split.ties is strict. Caution: <script>alert('&')</script>.",
        "Quality of the lists made at nights At each night every user's history is frozen",
        "relevant is what the user takes within 7 days after it.",
        "Hit rate@10 is the share of user-nights with at least one of the 10 items taken;",
        "Events of a target's own visit are not in its history in training.",
        "system NDCG@10 hit rate@10 recall@10 precision@10 MAP@10 MRR@10 NDCG@200 lookback",
        "Left out: 1,200 user-nights with nothing taken in the horizon, 1 event on an item taken before in the same horizon.",
        "system NDCG@10, 6 items taken again hit rate@10, 6 items taken again NDCG@10, 9 items taken for the first time",
        f"hit rate@10, 9 items taken for the first time lookback 0.2100 {ends} 0.4200 {ends} 0.2100 {ends} 0.4200 {ends} EASE",
        "hit rate@10, every held-out event lookback 0.2100 0.4200 0.0100 0.0200 EASE 0.2000 0.4000 – –",
        "2 items taken without training events",
        "How stale No loss of a model trained up to 7 days before shows. Score again every 7 days: after 7 days the lists",
        "7 5 0.5000 [0.4500, 0.5500] 0.4000 [0.3500, 0.4500] 0.2500 [0.2000, 0.3000] \u22120.1000 [\u22120.1100, \u22120.0900]",
        "Beyond the test: 14 days.",
        "When the log says what was shown 2,000 lists of 300 users in the test period, shown with known propensities, had 0.625",
        "lookback 0.5000 [0.3750, 0.6250], of 1,234 0.5000 [0.3750, 0.6250], of 1,234 0.5000",
        "of 1,234 refused popularity 0.5000",
    ):
        assert sentence in page.text
    first = page.text.split("The data")[0]
    assert "held-out events" not in first
    assert len([attributes for _, attributes in page.tags if attributes.get("class") == "warning"]) == 4


def test_segments(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    by_length, by_age = (
        page.text.split("By history length")[1].split("Diagnostics")[0].split("By age of the user")
    )
    assert (
        "history length targets users lookback EASE popularity 1-4 1,234 7 0.2500 [0.1250, 0.3750] 0.1500 0.0500"
        in by_length
    )
    assert "<script>alert('&')</script> 1,234 7" in by_age


def test_diagnostics(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    for sentence in (
        "The calibration error is 0.013 for the first recommendation and 0.013 for the first 10",
        "the log loss of the target is 1.50 nats, against 3.00 for a uniform prediction (5 targets)",
        "25 % of the recommended items are in the user's history already; 12.5 % of the targets are.",
        "ann best 0.500 3 1,234 <script>alert('&')</script>; Film 4 Film 5 1 –",
        "bob worst 0.000",
    ):
        assert sentence in page.text


@pytest.mark.parametrize("written", ["one type"], indirect=True)
def test_an_evaluation_with_one_baseline(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    assert "On the same targets it is better than popularity." in page.text
    for absent in (
        "The lists",
        "Leak checks",
        "At several cuts",
        "How the baselines",
        "Diagnostics",
        "p, Wilcoxon",
        "targets on items",
    ):
        assert absent not in page.text


def test_a_metric_that_is_not_there_is_a_dash() -> None:
    assert [report._number(value) for value in (0.5, None, float("nan"))] == ["0.5000", "–", "–"]


def test_example_users(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    shortest, longest = page.text.split("User ")[1:3]
    assert shortest.startswith(
        "ann All 6 events, newest first Film 6 Drama, Old, Long VIEW, 1970-01-06 00:00 Film 5"
    )
    assert "item 999 because of <script>alert('&')</script> (0.75); item 102 (0.25)" in shortest
    assert longest.startswith(
        "bob The last 15 of 20 events, newest first Film 4 Drama, Old, Long VIEW, 1970-01-26"
    )
    assert "Film 11 Drama, Old, Long because of" in longest
    assert "dee" not in page.text, "has no recommendations"


def test_proven_reasons_are_sentences() -> None:
    items = {101: report._Item("Film A", ""), 102: report._Item("Film B", "")}
    because = [{"item_id": 101, "weight": 0.75}, {"item_id": 102, "weight": 0.25}]
    row = {"item_id": 102, "because": because, "proven": True}
    assert report._recommendation(row, items).without == "Film A and Film B"
    unproven = report._recommendation(row | {"proven": False}, items)
    assert unproven.is_tried
    assert unproven.without is None
    assert not report._recommendation({"item_id": 102, "because": None}, items).is_tried


def test_stands_alone(written: tuple[Page, Path, Context]) -> None:
    page, path, _ = written
    assert path.stat().st_size < 5_000_000
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "iframe", "img"}
    assert not any(attributes.get("src") for _, attributes in page.tags)
    scripts = [attributes for tag, attributes in page.tags if tag == "script" and "type" not in attributes]
    assert scripts == [{}, {}], "the figures and the search"
    assert sum(attributes.get("id") == "plotly" for _, attributes in page.tags) == 1
    assert not any(attributes.get("href") for _, attributes in page.tags)
    assert HOSTILE in page.text, "shown, not obeyed"


def drawn(page: Page) -> dict[str | None, str]:
    """Name of each chart on the page to its description, in their order."""
    descriptions = [
        attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "chart"
    ]
    assert all(descriptions)
    return dict(zip(page.charts, map(str, descriptions), strict=True))


def test_shows_the_charts_of_the_evaluation(written: tuple[Page, Path, Context]) -> None:
    page, path, _ = written
    assert drawn(page) == {
        "events": "Events per day by type, and where validation and test begin",
        "distributions": "How many users have how many events, and how many items",
        "gaps": "Time between adjacent events of a user",
        "training": "Training loss and validation metrics per epoch",
        "metrics": "Metrics of every system with 95 % intervals; the numbers are in the table below",
        "rolling": "The metric of every system at each cut; mean and spread are in the table below",
        "by_history_length": "The metric of every system along history length; the numbers are in the table below",
        "attention": "Share of attention and of the history by place, age and type of the interactions",
        "nights": "Realised NDCG by night, and the promised band; the numbers are in the table below",
        "model_age": "Realised NDCG by age of the model",
    }
    figures = (path.parent / "figures.html").read_text(encoding="utf-8")
    assert len(re.findall('class="chart"', figures)) == 12, "also recall, and popularity"


def test_drift(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    for sentence in (
        "the 200 new events are spread quite differently from those of last time (large from 0.25)",
        "1,000 events of 3 users last time, up to 1970-02-04; 200 events are new, and there are 4 users now.",
        "The population stability index of items is",
        "LIKE 100 % 0 % VIEW 0 % 100 %",
    ):
        assert sentence in page.text
    assert len([attributes for _, attributes in page.tags if attributes.get("class") == "warning"]) == 2


@pytest.mark.parametrize("written", ["position"], indirect=True)
def test_log_without_times_and_types(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    assert "only the order of each user's events is known" in page.text
    for absent in ("1970", "sessions", "at the same time", "of type", "without a type", "last time"):
        assert absent not in page.text
    assert not {"events", "gaps"} & set(drawn(page))


@pytest.mark.parametrize("written", ["one type"], indirect=True)
def test_log_of_one_type_without_titles(written: tuple[Page, Path, Context]) -> None:
    page, _, _ = written
    assert "of type VIEW 35" in page.text
    assert "item 106" in page.text
    assert "different from last time" not in page.text, "there was none"


def test_worst_sources_first() -> None:
    files = [source(f"day{number}.csv", 100, 100 - number % 30, "1970-01-01") for number in range(60)]
    shown = report._worst_sources({"sources": files})
    assert len(shown) == report.SHOWN_SOURCES
    assert [each["paths"] for each in shown[:3]] == [["day29.csv"], ["day59.csv"], ["day28.csv"]]
