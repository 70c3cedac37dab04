"""Lists of similar items of a large catalogue: seconds and memory of each kind.

python tests/benchmarks/bench_similar.py [--items 200000] [--users 200000] [--events 20]

Random vectors of 64 components in clusters, lists of 20, a twentieth of the items not allowed; histories of random users within a
cluster each. Prints one JSON object: seconds of each kind, and the peak resident memory above that before.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from models.baselines.co_visitation import CoVisitation  # noqa: E402
from models.encoder.encoder import AttentionRecommender, Encoder  # noqa: E402
from models.histories import Histories  # noqa: E402
from models.recommendation.engine import RecommendationEngine  # noqa: E402
from models.recommendation.rules import Traits  # noqa: E402
from models.recommendation.similar_items import similar_items  # noqa: E402
from models.retrieval.build import build_index  # noqa: E402
from models.settings.encoder import EncoderSettings  # noqa: E402
from pipeline.artifacts.store import PeakMemory, give_back_memory  # noqa: E402

K, CLUSTER = 20, 100


def engine(items: int) -> RecommendationEngine:
    """Random weights; vectors of items in clusters."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(dim=64, num_blocks=2, num_heads=2), items, 0, 50)
    encoder.requires_grad_(requires_grad=False)
    weight = encoder.items.ids.weight  # type: ignore[union-attr]
    centres = torch.randn(items // CLUSTER + 1, 64)
    weight.copy_(centres[torch.arange(items + 1) // CLUSTER] + 0.7 * torch.randn(items + 1, 64))
    encoder.items.forget_untrained()
    vectors, numbers = encoder.item_vectors().numpy(), np.arange(1, items + 1, dtype=np.int32)
    counts, recommender = np.ones(items + 1, np.float32), AttentionRecommender(encoder)
    rows = np.arange(1000, dtype=np.int64)
    chosen = numbers[:: max(1, items // 1000)][:1000]
    alone = Histories(chosen, 0 * rows, np.zeros(1000, np.int16), rows, rows + 1)
    index = build_index(vectors[1:], numbers, queries=recommender.encode(alone))
    return RecommendationEngine(recommender, index, counts[None], Traits(counts, vectors=vectors))


def log(items: int, users: int, events: int) -> Histories:
    """Histories of users, each within a cluster of items."""
    random = np.random.default_rng(0)
    first = random.integers(0, items // CLUSTER, users)[:, None] * CLUSTER
    item = (first + random.integers(1, CLUSTER + 1, (users, events))).astype(np.int32).ravel()
    ends = np.arange(1, users + 1, dtype=np.int64) * events
    return Histories(item, np.arange(len(item)), np.zeros(len(item), np.int16), ends - events, ends)


def main() -> None:
    """Print seconds and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--events", type=int, default=20)
    arguments = parser.parse_args()
    own, histories = engine(arguments.items), log(arguments.items, arguments.users, arguments.events)
    allowed = np.random.default_rng(1).random(arguments.items + 1) > 0.05
    items = np.arange(1, arguments.items + 1, dtype=np.int32)
    give_back_memory()
    before, memory = PeakMemory().bytes(), PeakMemory()
    seconds, started = {}, time.monotonic()
    follows = CoVisitation.fit(histories, arguments.items, max_neighbours=arguments.items).follows
    seconds["count"] = time.monotonic() - started
    lists, started = {}, time.monotonic()
    for kind, (found, _) in similar_items(own, follows, items, K, time=0, allowed=allowed):
        seconds[kind], started = time.monotonic() - started, time.monotonic()
        lists[kind] = int((found > 0).sum())
    facts = {"index": own.index.facts.type, "pairs": follows.nnz, "places": lists}
    print(json.dumps(facts | {"seconds": seconds, "peak_bytes": memory.bytes() - before}))


if __name__ == "__main__":
    main()
