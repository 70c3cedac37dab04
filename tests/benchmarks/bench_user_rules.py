"""Rules for single users: seconds and memory of reading a file of candidates, and of lists from them against plain lists.

python tests/benchmarks/bench_user_rules.py [--users 1000000] [--candidates 200] [--items 50000] [--listed 4000]

Random vectors of 64 components, lists of 10. The file has the users in random order. Prints one JSON object: processor seconds
of this process, and its peak resident memory above that before, the mapped file included.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402

from features.histories.vocabulary import Vocabulary  # noqa: E402
from models.encoder.encoder import AttentionRecommender, Encoder  # noqa: E402
from models.histories import histories_from_lists  # noqa: E402
from models.recommendation.engine import RecommendationEngine  # noqa: E402
from models.recommendation.rules import Rules, Traits  # noqa: E402
from models.retrieval.build import build_index  # noqa: E402
from models.settings.encoder import EncoderSettings  # noqa: E402
from pipeline.artifacts.store import PeakMemory, give_back_memory  # noqa: E402
from pipeline.sections import ScoreConfig  # noqa: E402
from pipeline.serving import user_rules  # noqa: E402
from pipeline.serving.user_rules import UserRules  # noqa: E402

PARTS, POOL = 50, 1000


def write_file(path: Path, users: int, candidates: int, items: int) -> None:
    random = np.random.default_rng(0)
    schema = pa.schema({"user_id": pa.int64(), "item_id": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for part in np.array_split(random.permutation(users), PARTS):
            own = np.repeat(part, candidates)
            writer.write_table(pa.table({"user_id": own, "item_id": random.integers(0, items, len(own))}))


def engine(items: int) -> RecommendationEngine:
    encoder = Encoder(EncoderSettings(dim=64, num_blocks=1), items, 0, 50)
    encoder.requires_grad_(requires_grad=False)
    torch.nn.init.normal_(encoder.items.ids.weight)  # type: ignore[union-attr]
    vectors, numbers = encoder.item_vectors().numpy(), np.arange(1, items + 1, dtype=np.int32)
    popularity = np.ones((1, items + 1), np.float32)
    index = build_index(vectors[1:], numbers)
    return RecommendationEngine(AttentionRecommender(encoder), index, popularity, Traits(popularity[0]))


def seconds_of_lists(rules: UserRules, items: int, listed: int) -> dict[str, float]:
    """Processor seconds of lists from the whole catalogue, and from candidates, the reading of these included."""
    random, made = np.random.default_rng(1), engine(items)
    rows = histories_from_lists([random.integers(1, items + 1, 20).tolist() for _ in range(listed)])
    spent = {"plain_lists_seconds": 0.0, "candidates_lists_seconds": 0.0}
    for start in range(0, listed, POOL):
        users = np.arange(start, min(start + POOL, listed))
        for name in spent:
            started = time.process_time()
            part = rows.select(users)
            made.answer(
                part if name.startswith("plain") else rules.applied(users, part), 10, Rules(), in_blocks=True
            )
            spent[name] += time.process_time() - started
    return spent


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("users", 1_000_000), ("candidates", 200), ("items", 50_000), ("listed", 4_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_file(folder / "candidates.parquet", asked.users, asked.candidates, asked.items)
        settings = ScoreConfig(candidates=str(folder / "candidates.parquet"))
        give_back_memory()
        memory, started = PeakMemory(), time.process_time()
        before = memory.bytes()
        prepared = user_rules.prepare(settings, pl.Series(np.arange(asked.users)), folder / "rules")
        assert prepared is not None
        figures = {
            "prepare_seconds": time.process_time() - started,
            "prepare_mib": (memory.bytes() - before) / 2**20,
        }
        rules = UserRules.open(prepared, Vocabulary(pl.Series(np.arange(asked.items)), 1))
        figures |= seconds_of_lists(rules, asked.items, asked.listed)
    print(json.dumps(vars(asked) | {key: round(value, 2) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
