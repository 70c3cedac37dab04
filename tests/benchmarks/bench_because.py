"""Explanations of trained models: what they cost beside scoring, and how faithful they are.

python tests/benchmarks/bench_because.py                            (data/demo, 100 users: a minute or two after `make train`)
python tests/benchmarks/bench_because.py data/ml-1m data/beauty --users 1000

Each argument is the folder `<data_dir>/<name>` of a configuration that was run up to `train`. A random sample of its users, each
with the whole history, gets its 10 best unseen items, and all 10 are explained. Cost: processor seconds of one thread, the least
of several rounds in which scoring alone (encoding, retrieval) and with each method take turns, beyond those of scoring alone and
over them; "exact" once, on 30 of the users. Rate: `1 / (1 + cost)`, the users that are scored with explanations in the time that
one takes without. Faithfulness: `models.explanation.faithfulness` of the first item. Prints Markdown tables.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.checkpoint import load_model  # noqa: E402
from models.encoder.encoder import AttentionRecommender, Encoder, with_request_time  # noqa: E402
from models.explanation.contributions import Method, contributions, encode_to_explain, parts  # noqa: E402
from models.explanation.faithfulness import measure_encoder  # noqa: E402
from models.histories import Float32, Histories, Int32  # noqa: E402
from models.retrieval.build import build_index  # noqa: E402
from models.retrieval.index import ItemIndex  # noqa: E402
from pipeline.artifacts.files import read_json  # noqa: E402
from pipeline.dataset.dataset import Dataset  # noqa: E402

K = 10
ROUNDS = 6
EXACT_USERS = 30


def load(run: Path, num_users: int, seed: int) -> tuple[Encoder, Histories, Float32]:
    """The trained model of a run, the histories of some of its users and the events of every item."""
    train = (run / "train" / "latest").resolve()
    features = run / "features" / read_json(train / "manifest.json")["inputs"]["features"]
    dataset, mapping = Dataset.open(features), np.load(train / "items.npy")
    every = with_request_time(dataset.all_rows().compact().translate(mapping), dataset.facts.now)
    encoder = load_model(train)
    num_events = np.bincount(every.item_index, minlength=encoder.num_items + 1).astype(np.float32)
    known = np.flatnonzero(every.lengths > 0)
    chosen = np.random.default_rng(seed).choice(known, min(num_users, len(known)), replace=False)
    return encoder, every.select(np.sort(chosen)), num_events


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def costs(encoder: Encoder, index: ItemIndex, histories: Histories) -> tuple[float, dict[str, float]]:
    """Seconds of scoring, and what each method takes beyond it in multiples of it."""
    recommender = AttentionRecommender(encoder)

    def score() -> Int32:
        items, _ = index.search(recommender.encode(histories), K, histories)
        return items

    def score_and_explain(method: Method) -> None:
        for chosen in parts(encoder, np.minimum(histories.lengths, encoder.max_length), K):
            some = histories.select(chosen)
            vectors, explain = encode_to_explain(encoder, some, method)
            assert vectors is not None
            explain(index.search(vectors, K, some)[0])

    items = score()
    works: dict[str, Callable[[], Any]] = {
        "score": score,
        "fast": lambda: score_and_explain("fast"),
        "balanced": lambda: score_and_explain("balanced"),
    }
    least = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            least[name] = min(least[name], seconds(work))
    scoring = least["score"]
    part = slice(EXACT_USERS)
    exact = seconds(lambda: contributions(encoder, histories.select(part), items[part], "exact"))
    share = int(histories.lengths[part].sum()) / int(histories.lengths.sum())
    methods = {name: least[name] / scoring - 1 for name in ("fast", "balanced")}
    return scoring, methods | {"exact": exact / share / scoring}


def report(run: Path, num_users: int, seed: int) -> None:
    """Print the tables of one run."""
    encoder, histories, num_events = load(run, num_users, seed)
    vectors = encoder.item_vectors().detach().numpy()[1:]
    index = build_index(vectors, np.arange(1, encoder.num_items + 1, dtype=np.int32))
    scoring, cost = costs(encoder, index, histories)
    items, _ = index.search(AttentionRecommender(encoder).encode(histories), K, histories)
    found = measure_encoder(encoder, histories, items, num_events, methods=get_args(Method), seed=seed)
    settings, lengths = encoder.settings, np.minimum(histories.lengths, encoder.max_length)
    print(
        f"\n## {run.name}: {settings.block}, {settings.num_blocks} layers of {settings.dim}\n"
        f"{len(histories):,} users with {lengths.mean():.0f} interactions in the mean, {encoder.num_items:,} items; scoring "
        f"takes {1e3 * scoring / len(histories):.2f} ms a user.\n\n"
        "| | cost / scoring | rate | Spearman | deletion | insertion |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, told in found["methods"].items():
        took = f"{cost[name]:.2f} | {1 / (1 + cost[name]):.2f}" if name in cost else " | "
        areas = (spelt(told[kind], "area") for kind in ("deletion", "insertion"))
        print(f"| {name} | {took} | {spelt(told['spearman'], 'mean')} | {' | '.join(areas)} |")
    controls = next(iter(found["against"].values()))
    print(f"\n| minus | {' | '.join(controls)} |\n| --- |{' --- |' * len(controls)}")
    for name, against in found["against"].items():
        for kind in ("deletion", "insertion"):
            cells = (
                f"{spelt(each[kind], 'difference')} {each[kind]['verdict']}" for each in against.values()
            )
            print(f"| {name}, {kind} | {' | '.join(cells)} |")


def spelt(told: dict[str, Any], name: str) -> str:
    """A number with its interval."""
    if told[name] is None:
        return "–"
    return f"{told[name]:.3f} [{told['low']:.3f}, {told['high']:.3f}]"


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
