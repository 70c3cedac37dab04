"""The demo log: seeded users with planted tastes, so that what a model should find is known.

The catalogue is made of *series*: a few items in a fixed order. A series belongs to a topic, a topic to a category, and each series has one of
three styles that no column of the log shows. A user has two or three lasting tastes (categories) and one style. An *intent* is a short walk
along one series; the next intent goes on with a series that the user left half-way, however long ago, or begins another of the user's tastes
and style. Series are born and fade. A tenth of the events is noise: any item, whoever the user is.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
EVENT_TYPES = {"view": 0.72, "like": 0.20, "purchase": 0.08}
"""The three event types and their shares; noise has the same."""
NUM_STYLES = 3
DAY = 86_400
"""Seconds."""
BACK = 2.0
LEAVE=2.0
FADE_DAYS = 30.0
STYLE=4.0
STYLE_DIM=4
OUTSIDE=6.0
ZIPF=0.6
ITEMS_PER_CAT=200
NEW_FRACTION=0.25
INTENT_LEN=3.5

TOPICS = {
    "Cooking": ("Sourdough", "Ramen", "Preserves", "Grilling", "Pastry"),
    "Gardening": ("Roses", "Balcony", "Compost", "Orchard", "Bonsai"),
    "Astronomy": ("Comets", "Telescopes", "Black Holes", "Mars", "Star Charts"),
    "Music": ("Jazz Piano", "Choir", "Synthesizers", "Fingerstyle", "Opera"),
    "History": ("Rome", "Silk Road", "Vikings", "Renaissance", "Railways"),
    "Travel": ("Iceland", "Night Trains", "Andes", "Kyoto", "Island Hopping"),
    "Fitness": ("Marathon", "Yoga", "Climbing", "Rowing", "Kettlebell"),
    "Photography": ("Portraits", "Darkroom", "Birds", "Street", "Landscape"),
    "Programming": ("Compilers", "Databases", "Game Engines", "Networks", "Robotics"),
    "Film": ("Film Noir", "Animation", "Westerns", "Documentary", "Silent Era"),
    "Crafts": ("Knitting", "Woodturning", "Pottery", "Origami", "Bookbinding"),
    "Nature": ("Fungi", "Whales", "Beekeeping", "Rivers", "Alpine Flowers"),
    "Chess": ("Openings", "Endgames", "Gambits", "Puzzles", "Great Matches"),
    "Languages": ("Japanese", "Latin", "Portuguese", "Sign Language", "Finnish"),
    "Design": ("Typography", "Chairs", "Logos", "Colour", "Architecture"),
    "Mathematics": ("Knots", "Primes", "Probability", "Topology", "Cryptography"),
}
ADJECTIVES = ("Quiet", "Curious", "Patient", "Bold", "Hidden", "Everyday", "Modern", "Lost", "Little", "Practical", "Wild", "Golden")
FORMS = ("Notebook", "Stories", "Workshop", "Atlas", "Companion", "Lessons", "Letters", "Field Guide", "Sketches", "Diary", "Primer")

BAD_KINDS = ("missing_user", "missing_item", "unparseable_time", "impossible_time", "truncated", "extra_fields", "junk")
"""What can be wrong with a row of `events.csv`."""


@dataclass(frozen=True)
class SimulationSettings:
    """Size and noise of the demo log: the `[simulate]` section."""

    num_users: int = 5_000
    """Users; each has at least five events."""
    num_items: int = 2_000
    """Items of the catalogue, at least 100; one that nobody meets is in `items` all the same."""
    num_events: int = 200_000
    """Events, the bad rows not counted."""
    num_days: int = 90
    """Days from 2026-01-01 on."""
    noise_fraction: float = 0.1
    """Share of the events that have nothing to do with their user, in [0, 1)."""
    bad_row_fraction: float = 0.01
    """Share of the rows of `events.csv` that are no event, in [0, 1)."""

    def __post_init__(self) -> None:
        for key, least in (("num_users", 2), ("num_items", 100), ("num_events", 5 * self.num_users), ("num_days", 7)):
            if getattr(self, key) < least:
                raise ValueError(f"simulate.{key}: received {getattr(self, key)}, expected at least {least}")
        for key in ("noise_fraction", "bad_row_fraction"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"simulate.{key}: received {getattr(self, key)}, expected a share in [0, 1)")


@dataclass(frozen=True)
class Simulation:
    """The demo log and what was planted in it."""

    events: pl.DataFrame
    """In order of time: user_id (string), item_id (int64), timestamp (microseconds, UTC), event_type (string), value (float32, the price of a
    purchase, else null)."""
    items: pl.DataFrame
    """In order of item_id: item_id, title, categories (category and topic)."""
    truth: pl.DataFrame
    """A row per event, in the same order: row (in `events.csv`, from 1), user_id, item_id, timestamp, is_noise, intent (number of the user's walk,
    from 0), returns (the walk goes on with a series begun in an earlier one), is_taste (within the user's lasting categories), series (that
    the walk follows: where is_noise, not the item's)."""
    item_truth: pl.DataFrame
    """In order of item_id: item_id, series, style, part (place within the series, from 0), born (when the item came out)."""
    bad_rows: pl.DataFrame
    """The rows of `events.csv` that are no event: row, kind (one of BAD_KINDS), text."""


@dataclass(frozen=True)
class _Catalogue:
    """Items 0..num_items-1 lie topic after topic, the five topics of a category side by side."""

    first: Ints  # [topics + 1], first item of each topic
    appeal: Floats  # [items], logarithm of popularity when new
    born: Floats  # [items], seconds since the first day
    style: Floats  # [items, STYLE_DIM], unit vectors
    item_ids: Ints  # [items]

    @property
    def num_topics(self) -> int:
        return len(self.first) - 1

    @property
    def topic(self) -> Ints:
        return np.repeat(np.arange(self.num_topics), np.diff(self.first))


@dataclass(frozen=True)
class _Calendar:
    """Events user after user, each user's in order of time."""

    offsets: Ints  # [users + 1]; users with more events come first
    time: Floats  # [events], seconds since the first day
    begins: Bools  # [events], whether a new intent begins


@dataclass(frozen=True)
class _Users:
    """What lasts of each user."""

    liking: Floats  # [users, topics], logarithm of how readily an intent turns to the topic
    style: Floats  # [users, STYLE_DIM], unit vectors


@dataclass(frozen=True)
class _Walk:
    """What happens at each event of the calendar."""

    item: Ints
    is_noise: Bools
    intent: Ints
    topic: Ints  # of the intent
    returns: Bools


def simulate(settings: SimulationSettings, seed: int) -> Simulation:
    """The demo log of these settings: the same for the same seed, whatever the day or the machine.

    An intent of user u is on topic t with probability proportional to exp(liking[u, t] + BACK where u was there before), and each of its
    events is on the topic's item i, out at that time and not met before, with probability proportional to
    exp(appeal[i] - age[i] / FADE_DAYS + STYLE * style[u] . style[i]).
    """
    rng = np.random.default_rng(seed)
    catalogue = _make_catalogue(settings, rng)
    users = _make_users(settings.num_users, catalogue.num_topics, rng)
    calendar = _make_calendar(settings, rng)
    walk = _walk(settings, catalogue, users, calendar, rng)
    events, truth, bad_rows = _event_frames(settings, catalogue, calendar, walk, rng)
    items, item_truth = _item_frames(catalogue, rng)
    return Simulation(events, items, truth, item_truth, bad_rows)


def _directions(count: int, rng: np.random.Generator) -> Floats:
    """[count, STYLE_DIM], unit vectors in random directions."""
    vectors = rng.normal(size=(count, STYLE_DIM))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _make_catalogue(settings: SimulationSettings, rng: np.random.Generator) -> _Catalogue:
    count = settings.num_items
    num_topics = 5 * int(np.clip(count // ITEMS_PER_CAT, 2, len(TOPICS)))
    older = rng.random(count) < 1 - NEW_FRACTION
    born = np.where(older, rng.uniform(-60, 0, count), rng.uniform(0, settings.num_days, count))
    return _Catalogue(
        first=np.arange(num_topics + 1) * count // num_topics,
        appeal=-ZIPF * np.log(1.0 + rng.permutation(count) * 50/count),
        born=born * DAY,
        style=_directions(count, rng),
        item_ids=1_000 + rng.permutation(count),
    )


def _make_users(num_users: int, num_topics: int, rng: np.random.Generator) -> _Users:
    """Two or three categories each, popular ones more often, and within them some topics more than others."""
    num_categories = num_topics // 5
    appeal = -0.7 * np.log(1.0 + rng.permutation(num_categories))
    ranking = np.argsort(-(appeal + rng.gumbel(size=(num_users, num_categories))), axis=1)
    num_tastes = np.minimum(rng.integers(2, 4, num_users), num_categories)
    liking = np.full((num_users, num_categories), -OUTSIDE)
    for place, weight in enumerate((0.0, -0.4, -0.8)[:num_categories]):
        held = np.flatnonzero(num_tastes > place)
        liking[held, ranking[held, place]] = weight
    topic_appeal = -0.5 * np.log(1.0 + rng.permutation(num_topics))
    return _Users(np.repeat(liking, 5, axis=1) + topic_appeal, _directions(num_users, rng))


def _make_calendar(settings: SimulationSettings, rng: np.random.Generator) -> _Calendar:
    users, events = settings.num_users, settings.num_events
    activity = np.clip(rng.lognormal(0.0, 0.8, users), 0.1, 4.0)
    counts = np.sort(5 + rng.multinomial(events - 5 * users, activity / activity.sum()))[::-1]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    user = np.repeat(np.arange(users), counts)
    begins = rng.random(events) < 1/INTENT_LEN
    begins[offsets[:-1]] = True
    joined = np.where(rng.random(users) < 0.6, 0.0, rng.uniform(0, 0.97, users)) * settings.num_days
    left = np.where(rng.random(users) < 0.7, settings.num_days, rng.uniform(joined, settings.num_days))
    sitting = np.cumsum(begins) - 1
    owner = user[begins]
    day = np.floor(rng.uniform(joined[owner], left[owner]))
    since_midnight = rng.triangular(6 * 3_600, 19 * 3_600, 21 * 3_600, len(owner))
    gaps = np.where(begins, 0.0, 20 + rng.exponential(200, events)).cumsum()
    time = (day * DAY + since_midnight - gaps[begins])[sitting] + gaps
    return _Calendar(offsets, np.floor(time[np.lexsort((time, user))]), begins)


def _walk(
    settings: SimulationSettings, catalogue: _Catalogue, users: _Users, calendar: _Calendar, rng: np.random.Generator
) -> _Walk:
    """All users take their first event, then all their second, and so on: one round is one numpy step."""
    num_users, num_events = settings.num_users, settings.num_events
    is_noise = rng.random(num_events) < settings.noise_fraction
    noise = _any_item(catalogue, calendar.time, rng)
    met = np.zeros((num_users, settings.num_items), bool)
    visited = np.zeros((num_users, catalogue.num_topics), bool)
    now_on, intents, back = np.zeros(num_users, np.int64), np.full(num_users, -1), np.zeros(num_users, bool)
    item, topic, intent = (np.zeros(num_events, np.int64) for _ in range(3))
    returns = np.zeros(num_events, bool)
    counts = np.diff(calendar.offsets)
    for turn in range(int(counts[0])):
        active = np.arange(np.searchsorted(-counts, -turn))
        at = calendar.offsets[active] + turn
        new = np.flatnonzero(calendar.begins[at])
        now_on[new] = _sample(users.liking[new] + BACK * visited[new] - LEAVE*(np.arange(catalogue.num_topics)==now_on[new][:,None]), rng)
        back[new] = visited[new, now_on[new]]
        visited[new, now_on[new]] = True
        intents[new] += 1
        chosen = _sample_items(catalogue, now_on[active], calendar.time[at], users.style[active], met, rng)
        item[at] = np.where(is_noise[at], noise[at], chosen)
        met[active, item[at]] = True
        topic[at], intent[at], returns[at] = now_on[active], intents[active], back[active]
    return _Walk(item, is_noise, intent, topic, returns)


def _sample(logits: Floats, rng: np.random.Generator) -> Ints:
    """[rows], a column of each row of logits, with probability proportional to exp(logit)."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)


def _sample_items(
    catalogue: _Catalogue, topic: Ints, now: Floats, style: Floats, met: Bools, rng: np.random.Generator
) -> Ints:
    """[rows], an item of each row's topic (the law is in `simulate`)."""
    widest = int(np.diff(catalogue.first).max())
    items = np.minimum(catalogue.first[topic][:, None] + np.arange(widest), catalogue.first[topic + 1][:, None] - 1)
    age = (now[:, None] - catalogue.born[items]) / DAY
    fit = np.einsum("us,uis->ui", style, catalogue.style[items])
    logits = catalogue.appeal[items] - age / FADE_DAYS + STYLE * fit
    logits -= 10.0 * met[np.arange(len(topic))[:, None], items] + 100.0 * (age < 0)
    return items[np.arange(len(topic)), _sample(logits, rng)]


def _any_item(catalogue: _Catalogue, now: Floats, rng: np.random.Generator) -> Ints:
    """For each moment, one of the items that are out, all equally likely."""
    by_birth = np.argsort(catalogue.born, kind="stable")
    out = np.searchsorted(catalogue.born[by_birth], now, side="right")
    return by_birth[(rng.random(len(now)) * out).astype(np.int64)]


def _item_frames(catalogue: _Catalogue, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What the log tells of the items, and what it does not; both in order of item_id."""
    topics = [(category, topic) for category, names in TOPICS.items() for topic in names]
    topic = catalogue.topic
    names = [f"The {adjective} {form}" for adjective in ADJECTIVES for form in FORMS]
    frame = pl.DataFrame(
        {
            "item_id": catalogue.item_ids,
            "title": [f"{topics[t][1]}: {name}" for t,name in zip(topic, rng.choice(names, len(topic)))],
            "categories": [list(topics[t]) for t in topic],
            "topic": topic,
            "born": _moments(catalogue.born),
        }
    ).sort("item_id")
    return frame.select("item_id", "title", "categories"), frame.drop("title", "categories")


def _moments(seconds: Floats) -> pl.Series:
    """Seconds since the first day as moments, in microseconds, UTC."""
    since_epoch = (np.floor(seconds).astype(np.int64) + int(FIRST_DAY.timestamp())) * 1_000_000
    return pl.Series(since_epoch).cast(pl.Datetime("us", "UTC"))


def _event_frames(
    settings: SimulationSettings, catalogue: _Catalogue, calendar: _Calendar, walk: _Walk, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events, truth and bad rows; the bad rows are scattered among the events."""
    num_bad = round(settings.num_events * settings.bad_row_fraction / (1 - settings.bad_row_fraction))
    user = np.repeat(np.arange(settings.num_users), np.diff(calendar.offsets))
    order = np.lexsort((user, calendar.time))
    user_ids = np.array([f"u{number:04d}" for number in 1 + rng.permutation(settings.num_users)])
    price = np.round(np.exp(rng.normal(2.5, 0.6, settings.num_items)), 2).astype(np.float32)
    event_type = rng.choice(list(EVENT_TYPES), size=len(user), p=list(EVENT_TYPES.values()))
    bad = np.sort(rng.choice(len(user) + num_bad, num_bad, replace=False))
    row = np.delete(np.arange(len(user) + num_bad), bad) + 1
    events = pl.DataFrame(
        {
            "user_id": user_ids[user[order]],
            "item_id": catalogue.item_ids[walk.item[order]],
            "timestamp": _moments(calendar.time[order]),
            "event_type": event_type[order],
            "value": pl.Series(price[walk.item[order]]).set(pl.Series(event_type[order] != "purchase"), None),
        }
    )
    truth = events.select(pl.Series("row", row), "user_id", "item_id", "timestamp").with_columns(
        is_noise=walk.is_noise[order],
        intent=walk.intent[order],
        returns=walk.returns[order],
        topic=walk.topic[order],
    )
    return events, truth, _bad_rows(events, bad + 1, rng)


def _lines(events: pl.DataFrame) -> pl.DataFrame:
    """The fields of each event as they stand in the file."""
    return events.with_columns(
        pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ"), pl.exclude("timestamp").cast(pl.String).fill_null("")
    )


def _bad_rows(events: pl.DataFrame, row: Ints, rng: np.random.Generator) -> pl.DataFrame:
    """Good rows spoilt, each kind in turn."""
    fields = _lines(events[rng.integers(0, len(events), len(row))]).rows()
    kinds = [BAD_KINDS[number % len(BAD_KINDS)] for number in range(len(row))]
    texts = [_spoil(list(good), kind) for good, kind in zip(fields, kinds, strict=True)]
    return pl.DataFrame({"row": row, "kind": kinds, "text": texts}, schema={"row": pl.Int64, "kind": pl.String, "text": pl.String})


def _spoil(fields: list[str], kind: str) -> str:
    """A good row's fields as the line of a bad one."""
    user_id, item_id, timestamp, *rest = fields
    spoilt = {
        "missing_user": ["", item_id, timestamp, *rest],
        "missing_item": [user_id, "", timestamp, *rest],
        "unparseable_time": [user_id, item_id, "yesterday", *rest],
        "impossible_time": [user_id, item_id, "2026-02-30T25:61:00Z", *rest],
        "truncated": [user_id, item_id[:2]],
        "extra_fields": [*fields, user_id, item_id],
        "junk": ["--- log rotated ---"],
    }
    return ",".join(spoilt[kind])


def write(simulation: Simulation, folder: Path) -> None:
    """Write `events.csv`, `items.jsonl` and `truth.parquet` into the folder: the same simulation, the same bytes.

    Rows of `events.csv` are numbered from 1 below the header: `row` of `truth` and `bad_rows`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    good = _lines(simulation.events).select(simulation.truth["row"], pl.concat_str(pl.all(), separator=",").alias("text"))
    rows = pl.concat([good, simulation.bad_rows.select("row", "text")]).sort("row")
    header = ",".join(simulation.events.columns)
    (folder / "events.csv").write_text("\n".join([header, *rows["text"], ""]), encoding="utf-8", newline="\n")
    simulation.items.write_ndjson(folder / "items.jsonl")
    simulation.truth.write_parquet(folder / "truth.parquet")
