"""Demo log: seeded users with planted tastes, so that the best recommendations are known.

A user has two or three lasting tastes (categories of items) and one style that no column of the log shows. An *intent* is a
few consecutive events on one topic of a taste; intents return to earlier topics more often than they begin new ones. The choice
among a topic's items depends on the style, which every earlier event, on any topic, reveals a little. So predicting the next
event needs recent events for the topic, distant ones for the style, and robustness to noise: a tenth of all events is a random
item. Items appear and fade.

With `simulate.drift_day` the log is the same up to that day. From then on half of the users have other tastes, popular items
are unpopular and unpopular ones popular, and all items that were still to come are out.

With `simulate.exposures` users are also shown lists (`simulated_exposures`); the log is the same up to the rows of what they
take from them, which are its last. With `simulate.shelves` lists are shown that change nothing (`simulated_shelves`).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import simulated_exposures, simulated_shelves
from features.simulated_exposures import Exposures, Readers
from features.simulated_shelves import UserEvents
from features.simulation_settings import SimulationSettings

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86_400
"""Seconds."""
EVENT_TYPES = {"view": 0.72, "like": 0.20, "purchase": 0.08}
"""Event types and their shares, the same in noise."""
BAD_KINDS = (
    "missing_user",
    "missing_item",
    "unparseable_time",
    "impossible_time",
    "truncated",
    "extra_fields",
    "junk",
)
"""Kinds of bad rows of `events.csv`."""

STYLE = 6.0
"""Preference for the user's own style, in nats; twice this over the opposite style."""
STYLE_DIM = 3
"""Dimension of the space of styles, which are directions in it."""
RETURN = 2.0
"""Preference for an earlier topic of the user over an equal new one, in nats."""
REST = 2.0
"""Penalty of the topic just left, in nats."""
FAVOUR = 1.0
"""Spread of a user's liking within a category: scale of a Gumbel distribution, in nats."""
OUTSIDE = 9.0
"""Penalty of categories outside the user's tastes, in nats."""
INTENT_EVENTS = 4.0
"""Mean events per intent."""
NEW_ITEMS = 0.2
"""Share of items released during the log's days."""
FADE_DAYS = 30.0
"""Decay time of an item's popularity to 1/e, in days."""
DRIFTING_USERS = 0.5
"""Share of users whose tastes are drawn anew on the day of a drift."""

TOPICS = {
    "Cooking": ("Sourdough", "Ramen", "Preserves"),
    "Gardening": ("Roses", "Balcony", "Compost"),
    "Astronomy": ("Comets", "Telescopes", "Black Holes"),
    "Music": ("Jazz Piano", "Choir", "Synthesizers"),
    "History": ("Rome", "Silk Road", "Vikings"),
    "Travel": ("Iceland", "Night Trains", "Andes"),
    "Fitness": ("Marathon", "Yoga", "Climbing"),
    "Photography": ("Portraits", "Darkroom", "Birds"),
    "Programming": ("Compilers", "Databases", "Game Engines"),
    "Film": ("Film Noir", "Animation", "Westerns"),
}
TOPIC_NAMES = [(category, topic) for category, topics in TOPICS.items() for topic in topics]
TOPICS_PER_CATEGORY = 3
ITEMS_PER_CATEGORY = 200
ADJECTIVES = ("Quiet", "Curious", "Patient", "Bold", "Hidden", "Everyday", "Lost", "Golden", "Modern")
FORMS = ("Notebook", "Stories", "Workshop", "Atlas", "Companion", "Letters", "Sketches", "Diary")


@dataclass(frozen=True)
class Simulation:
    """Demo log and its planted truth."""

    events: pl.DataFrame
    """In order of time: user_id (string), item_id (int64), timestamp (microseconds, UTC), event_type (string), value
    (float32: the price of a purchase, else null)."""
    items: pl.DataFrame
    """In order of item_id: item_id, title, categories (list: category and topic), price (float32)."""
    truth: pl.DataFrame
    """A row per event, in the same order: row (its number in `events.csv`, from 1), user_id, item_id, timestamp, is_noise,
    intent (its number among the user's, from 0), category and topic (of the intent: where is_noise, not of the item),
    is_taste (whether the category is one of the user's lasting tastes), returns (whether the user had an earlier
    intent on the topic)."""
    births: pl.DataFrame
    """In order of item_id: item_id, born (when the item came out)."""
    bad_rows: pl.DataFrame
    """Bad rows of `events.csv`: row, kind (one of BAD_KINDS), text."""
    exposures: Exposures | None = None
    shelves: pl.DataFrame | None = None
    """Rows of an exposure log, in order of time: user_id, item_id, timestamp, rank, propensity, list_id."""

    @property
    def shown(self) -> pl.DataFrame | None:
        """Exposure log; None where nothing is shown."""
        return self.shelves if self.exposures is None else self.exposures.shown


@dataclass(frozen=True)
class _Catalogue:
    """Items 0..num_items-1 lie topic after topic, the topics of a category side by side."""

    first: Ints  # [topics + 1], first item of each topic
    appeal: Floats  # [2, items], logarithm of popularity when new, before and after a drift
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
class _Users:
    """Lasting traits of each user."""

    liking: Floats  # [2, users, topics], logarithm of how readily an intent turns to the topic, before and after a drift
    is_taste: Bools  # [2, users, topics]
    style: Floats  # [users, STYLE_DIM], unit vectors


@dataclass(frozen=True)
class _Calendar:
    """Events user after user, each user's in order of time."""

    offsets: Ints  # [users + 1]; users with more events come first
    time: Floats  # [events], seconds since the first day
    begins: Bools  # [events], whether a new intent begins
    phase: Ints  # [events], 0, after a drift 1

    @property
    def user(self) -> Ints:
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class _Walk:
    """Outcome of each event of the calendar."""

    item: Ints
    is_noise: Bools
    intent: Ints
    topic: Ints
    returns: Bools


def simulate(settings: SimulationSettings, seed: int) -> Simulation:
    """The demo log of these settings: the same for the same seed, whatever the day.

    P(an intent of user u is on topic t) is proportional to
    exp(liking[u, t] + RETURN if u was on t before - REST if u was on t just before), and
    P(one of its events is on item i of the topic), among the items that are out, to
    exp(appeal[i] - age[i] / FADE_DAYS + STYLE * style[u] . style[i]), but hardly ever on an item that u has met.
    From `drift_day` on other likings and appeals hold.
    """
    rng = np.random.default_rng(seed)
    drift, shown = rng.spawn(2)  # leave the draws of a log without a drift or exposures as they are
    catalogue = _make_catalogue(settings, rng)
    users = _make_users(settings.num_users, catalogue.num_topics, rng, drift)
    calendar = _make_calendar(settings, rng)
    walk = _walk(settings, catalogue, users, calendar, rng)
    user_ids, price, events, truth, bad_rows = _event_frames(settings, catalogue, users, calendar, walk, rng)
    items, births = _item_frames(catalogue, price, rng)
    exposures = (
        _exposures(settings, catalogue, users, calendar, user_ids, shown) if settings.exposures else None
    )
    shelves = None
    if settings.shelves:
        visits = UserEvents(calendar.offsets, walk.item, calendar.time)
        drawn = simulated_shelves.draw(visits, catalogue.born, settings.num_days, settings.shelves, shown)
        shelves = drawn.table(_moments(drawn.time), user_ids, catalogue.item_ids)
    return Simulation(events, items, truth, births, bad_rows, exposures, shelves)


def write(simulation: Simulation, folder: Path) -> None:
    """Write `events.csv`, `items.csv`, `truth.parquet` and, where there are any, `exposures.csv` into the folder: the same
    simulation, the same bytes.

    Rows of `events.csv` are numbered from 1 below the header, reactions to exposures last. Categories stand as "category|topic".
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exposures.csv").unlink(missing_ok=True)
    if simulation.shown is not None:
        _fields(simulation.shown).write_csv(folder / "exposures.csv")
    exposures = simulation.exposures
    reactions = [] if exposures is None else _lines(exposures.reactions).to_list()
    good = simulation.truth.select("row", _lines(simulation.events).alias("text"))
    rows = pl.concat([good, simulation.bad_rows.select("row", "text")]).sort("row")
    header = ",".join(simulation.events.columns)
    (folder / "events.csv").write_bytes("\n".join([header, *rows["text"], *reactions, ""]).encode())
    simulation.items.with_columns(pl.col("categories").list.join("|")).write_csv(folder / "items.csv")
    simulation.truth.write_parquet(folder / "truth.parquet")


def _directions(count: int, rng: np.random.Generator) -> Floats:
    """[count, STYLE_DIM], unit vectors in random directions."""
    vectors = rng.normal(size=(count, STYLE_DIM))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _make_catalogue(settings: SimulationSettings, rng: np.random.Generator) -> _Catalogue:
    """Zipf-distributed popularity across topics; each topic has an item from the first day on."""
    count = settings.num_items
    num_topics = TOPICS_PER_CATEGORY * int(np.clip(count // ITEMS_PER_CATEGORY, 2, len(TOPICS)))
    first = np.arange(num_topics + 1) * count // num_topics
    is_new = rng.random(count) < NEW_ITEMS
    is_new[first[:-1]] = False
    born = np.where(is_new, rng.uniform(0, settings.num_days, count), rng.uniform(-2 * FADE_DAYS, 0, count))
    if settings.drift_day:
        born = np.minimum(born, settings.drift_day)
    place = rng.permutation(count)
    appeal = [-2.0 * np.log(0.02 * count + places) for places in (place, count - 1 - place)]
    return _Catalogue(
        first=first,
        appeal=np.stack(appeal),
        born=born * DAY,
        style=_directions(count, rng),
        item_ids=1_000 + rng.permutation(count),
    )


def _make_users(
    num_users: int, num_topics: int, rng: np.random.Generator, drift: np.random.Generator
) -> _Users:
    """Tastes of each user before and after a drift, and one style."""
    before, after = _tastes(num_users, num_topics, rng), _tastes(num_users, num_topics, drift)
    drifts = drift.random((num_users, 1)) < DRIFTING_USERS
    liking, is_taste = (
        np.stack([old, np.where(drifts, new, old)]) for old, new in zip(before, after, strict=True)
    )
    return _Users(liking, is_taste, _directions(num_users, rng))


def _tastes(num_users: int, num_topics: int, rng: np.random.Generator) -> tuple[Floats, Bools]:
    """Two or three categories per user, popular ones more often, each a little less liked than the one before.

    Returns ([users, topics] liking, [users, topics] whether the topic's category is a taste).
    """
    num_categories = num_topics // TOPICS_PER_CATEGORY
    popularity = -0.7 * np.log(1.0 + rng.permutation(num_categories))
    dearest = np.argsort(-(popularity + rng.gumbel(size=(num_users, num_categories))), axis=1)
    place = np.argsort(dearest, axis=1)
    is_taste = place < rng.integers(2, 4, num_users)[:, None]
    liking = np.where(is_taste, -0.4 * place, -OUTSIDE)
    favour = -np.log(1.0 + rng.permutation(num_topics)) + FAVOUR * rng.gumbel(size=(num_users, num_topics))
    within = favour.reshape(num_users, num_categories, TOPICS_PER_CATEGORY)
    within -= np.log(np.exp(within).sum(axis=2, keepdims=True))
    by_topic = (liking[:, :, None] + within).reshape(num_users, num_topics)
    return by_topic, np.repeat(is_taste, TOPICS_PER_CATEGORY, axis=1)


def _make_calendar(settings: SimulationSettings, rng: np.random.Generator) -> _Calendar:
    """Sittings of one intent each, on days between the user's first and last, mostly in the evening."""
    users, events, days = settings.num_users, settings.num_events, settings.num_days
    activity = np.clip(rng.lognormal(0.0, 0.8, users), 0.1, 4.0)
    counts = np.sort(5 + rng.multinomial(events - 5 * users, activity / activity.sum()))[::-1]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    user = np.repeat(np.arange(users), counts)
    begins = rng.random(events) < 1 / INTENT_EVENTS
    begins[offsets[:-1]] = True
    joined = np.where(rng.random(users) < 0.6, 0.0, rng.uniform(0, 0.97 * days, users))
    left = np.where(rng.random(users) < 0.7, days, rng.uniform(joined, days))
    owner = user[begins]
    day = np.floor(rng.uniform(joined[owner], left[owner]))
    begun = day * DAY + rng.triangular(6 * 3_600, 19 * 3_600, 21 * 3_600, len(owner))
    elapsed = np.cumsum(20 + rng.exponential(200, events))
    time = np.floor((begun - elapsed[begins])[np.cumsum(begins) - 1] + elapsed)
    time = time[np.lexsort((time, user))]
    is_after = (settings.drift_day > 0) & (time >= settings.drift_day * DAY)
    return _Calendar(offsets, time, begins, is_after.astype(np.int64))


def _walk(
    settings: SimulationSettings,
    catalogue: _Catalogue,
    users: _Users,
    calendar: _Calendar,
    rng: np.random.Generator,
) -> _Walk:
    """All users take their first event, then all their second, and so on: one turn is one step in numpy."""
    num_users, num_events, topics = settings.num_users, settings.num_events, np.arange(catalogue.num_topics)
    is_noise = rng.random(num_events) < settings.noise_fraction
    noise = _any_item(catalogue, calendar.time, rng)
    met = np.zeros((num_users, settings.num_items), bool)
    visited = np.zeros((num_users, len(topics)), bool)
    on = np.full(num_users, -1)
    intents = np.full(num_users, -1)
    comes_back = np.zeros(num_users, bool)
    item, intent, topic = (np.zeros(num_events, np.int64) for _ in range(3))
    returns = np.zeros(num_events, bool)
    counts = np.diff(calendar.offsets)
    for turn in range(int(counts[0])):
        active = np.arange(np.searchsorted(-counts, -turn))
        at = calendar.offsets[active] + turn
        new = np.flatnonzero(calendar.begins[at])
        liking = users.liking[calendar.phase[at][new], new]
        drawn_to = liking + RETURN * visited[new] - REST * (topics == on[new][:, None])
        on[new] = _sample(drawn_to, rng)
        comes_back[new] = visited[new, on[new]]
        visited[new, on[new]] = True
        intents[new] += 1
        chosen = _sample_items(catalogue, on[active], calendar, at, users.style[active], met, rng)
        item[at] = np.where(is_noise[at], noise[at], chosen)
        met[active, item[at]] = True
        intent[at], topic[at], returns[at] = intents[active], on[active], comes_back[active]
    return _Walk(item, is_noise, intent, topic, returns)


def _sample(logits: Floats, rng: np.random.Generator) -> Ints:
    """[rows], a column of each row of logits, with probability proportional to exp(logit): the Gumbel-max trick."""
    return np.asarray(np.argmax(logits + rng.gumbel(size=logits.shape), axis=1))


def _sample_items(
    catalogue: _Catalogue,
    topic: Ints,
    calendar: _Calendar,
    at: Ints,
    style: Floats,
    met: Bools,
    rng: np.random.Generator,
) -> Ints:
    """[rows], an item of each row's topic, with the probabilities in `simulate`; at: [rows], events of the calendar."""
    rows, now = np.arange(len(topic))[:, None], calendar.time[at]
    column = np.arange(np.diff(catalogue.first).max())
    item = np.minimum(catalogue.first[topic][:, None] + column, len(catalogue.born) - 1)
    age = (now[:, None] - catalogue.born[item]) / DAY
    likeness = np.einsum("rs,rcs->rc", style, catalogue.style[item])
    logits = catalogue.appeal[calendar.phase[at][:, None], item] - age / FADE_DAYS + STYLE * likeness
    logits -= 12.0 * met[rows, item] + 100.0 * (age < 0) + 1000.0 * (catalogue.topic[item] != topic[:, None])
    return np.asarray(item[rows[:, 0], _sample(logits, rng)])


def _any_item(catalogue: _Catalogue, now: Floats, rng: np.random.Generator) -> Ints:
    """[moments], a uniformly drawn item among those already released."""
    by_birth = np.argsort(catalogue.born, kind="stable")
    num_out = np.searchsorted(catalogue.born[by_birth], now, side="right")
    return np.asarray(by_birth[np.floor(rng.random(len(now)) * num_out).astype(np.int64)])


def _moments(seconds: Floats) -> pl.Series:
    """Seconds since the first day as moments, in microseconds, UTC."""
    since_epoch = np.floor(seconds).astype(np.int64) + int(FIRST_DAY.timestamp())
    return pl.Series(since_epoch * 1_000_000).cast(pl.Datetime("us", "UTC"))


def _item_frames(
    catalogue: _Catalogue, price: NDArray[np.float32], rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and births; price: [items]."""
    titles = [f"The {adjective} {form}" for adjective in ADJECTIVES for form in FORMS]
    parts = [part for topic_size in np.diff(catalogue.first) for part in _names(titles, topic_size, rng)]
    frame = pl.DataFrame(
        {
            "item_id": catalogue.item_ids,
            "title": [
                f"{TOPIC_NAMES[topic][1]}: {part}" for topic, part in zip(catalogue.topic, parts, strict=True)
            ],
            "categories": [list(TOPIC_NAMES[topic]) for topic in catalogue.topic],
            "price": price,
            "born": _moments(catalogue.born),
        }
    ).sort("item_id")
    return frame.drop("born"), frame.select("item_id", "born")


def _names(titles: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` distinct titles, numbered beyond the number of `titles`."""
    order = rng.permutation(len(titles))
    rounds, within = np.divmod(np.arange(count), len(titles))
    return [
        titles[order[i]] + (f" {volume + 1}" if volume else "")
        for volume, i in zip(rounds, within, strict=True)
    ]


def _event_frames(
    settings: SimulationSettings,
    catalogue: _Catalogue,
    users: _Users,
    calendar: _Calendar,
    walk: _Walk,
    rng: np.random.Generator,
) -> tuple[NDArray[np.str_], NDArray[np.float32], pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Ids of the users, prices of the items, events, truth, and bad rows scattered among the events."""
    num_events = settings.num_events
    num_bad = round(num_events * settings.bad_row_fraction / (1 - settings.bad_row_fraction))
    bad = np.sort(rng.choice(num_events + num_bad, num_bad, replace=False))
    row = np.delete(np.arange(num_events + num_bad), bad) + 1
    order = np.lexsort((calendar.user, calendar.time))
    user, item, topic = calendar.user[order], walk.item[order], walk.topic[order]
    user_ids = np.array([f"u{number:04d}" for number in 1 + rng.permutation(settings.num_users)])
    price = np.round(np.exp(rng.normal(2.5, 0.6, settings.num_items)), 2).astype(np.float32)
    event_type = rng.choice(list(EVENT_TYPES), size=num_events, p=list(EVENT_TYPES.values()))
    names = np.array(TOPIC_NAMES)[topic]
    events = pl.DataFrame(
        {
            "user_id": user_ids[user],
            "item_id": catalogue.item_ids[item],
            "timestamp": _moments(calendar.time[order]),
            "event_type": event_type,
            "value": pl.Series(price[item]).set(pl.Series(event_type != "purchase"), None),
        }
    )
    truth = events.select(pl.Series("row", row), "user_id", "item_id", "timestamp").with_columns(
        is_noise=walk.is_noise[order],
        intent=walk.intent[order],
        category=names[:, 0],
        topic=names[:, 1],
        is_taste=users.is_taste[calendar.phase[order], user, topic],
        returns=walk.returns[order],
    )
    return user_ids, price, events, truth, _bad_rows(events, bad + 1, rng)


def _exposures(
    settings: SimulationSettings,
    catalogue: _Catalogue,
    users: _Users,
    calendar: _Calendar,
    user_ids: NDArray[np.str_],
    rng: np.random.Generator,
) -> Exposures:
    """A list before the events of each of some random mornings."""
    readers = Readers(
        catalogue.appeal, catalogue.born, catalogue.topic, catalogue.style, users.is_taste, users.style
    )
    days = np.floor(calendar.time / DAY).astype(np.int64)
    (day, user), first = np.unique(np.stack([days, calendar.user]), axis=1, return_index=True)
    number = min(len(first), settings.num_events // simulated_exposures.EVENTS_PER_LIST)
    chosen = np.sort(rng.choice(len(first), number, replace=False))
    lists = simulated_exposures.draw(
        readers, user[chosen], day[chosen], calendar.phase[first[chosen]], rng
    ).in_order()
    times = _moments(lists.time)
    return simulated_exposures.in_tables(lists, readers, times, user_ids, catalogue.item_ids)


def _fields(events: pl.DataFrame) -> pl.DataFrame:
    """Every value as text of the file."""
    time = pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return events.select(pl.exclude("timestamp").cast(pl.String).fill_null(""), time).select(events.columns)


def _lines(events: pl.DataFrame) -> pl.Series:
    """Each event as a line of the file."""
    return _fields(events).select(pl.concat_str(pl.all(), separator=",")).to_series()


def _bad_rows(events: pl.DataFrame, row: Ints, rng: np.random.Generator) -> pl.DataFrame:
    """Spoilt good rows, each kind in turn."""
    good = _fields(events[rng.integers(0, len(events), len(row))]).rows()
    kinds = [BAD_KINDS[number % len(BAD_KINDS)] for number in range(len(row))]
    texts = [_spoil(list(fields), kind) for fields, kind in zip(good, kinds, strict=True)]
    return pl.DataFrame(
        {"row": row, "kind": kinds, "text": texts},
        schema={"row": pl.Int64, "kind": pl.String, "text": pl.String},
    )


def _spoil(fields: list[str], kind: str) -> str:
    """Line of a bad row, made from a good row's fields."""
    user_id, item_id, timestamp, *rest = fields
    spoilt = {
        "missing_user": ["", item_id, timestamp, *rest],
        "missing_item": [user_id, "", timestamp, *rest],
        "unparseable_time": [user_id, item_id, "yesterday", *rest],
        "impossible_time": [user_id, item_id, "9999-12-31T23:59:59Z", *rest],
        "truncated": [user_id, item_id[:2]],
        "extra_fields": [*fields, user_id, item_id],
        "junk": ["--- log rotated ---"],
    }
    return ",".join(spoilt[kind])
