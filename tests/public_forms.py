"""Small logs in the forms of public data sets: the columns, names, separators and quirks of each, with random events."""

import datetime
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

Event = tuple[int, int, int]
"""User, item, seconds since the epoch."""
START = 1_400_000_000
NUM_USERS, NUM_ITEMS = 30, 25


def _events(start: int = START) -> list[Event]:
    rng = random.Random(0)
    events = [
        (user, min(int(rng.expovariate(0.2)), NUM_ITEMS - 1), start + rng.randrange(90 * 86_400))
        for user in range(NUM_USERS)
        for _ in range(20)
    ]
    return sorted(events, key=lambda event: event[2])


def _utc(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _write(path: Path, lines: Iterator[str], encoding: str = "utf-8") -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return path


def movielens_csv(folder: Path) -> list[Path]:
    """ratings.csv and movies.csv, as MovieLens 20M and later."""
    ratings = (f"{user + 1},{item + 1},{1 + item % 9 / 2},{time}" for user, item, time in _events())
    movies = (
        f'{item + 1},"Movie, The {item} (1995)",Comedy|Drama'
        if item % 3
        else f"{item + 1},Movie {item} (1995),Drama"
        for item in range(NUM_ITEMS)
    )
    return [
        _write(folder / "ratings.csv", iter(["userId,movieId,rating,timestamp", *ratings])),
        _write(folder / "movies.csv", iter(["movieId,title,genres", *movies])),
    ]


def retailrocket(folder: Path) -> list[Path]:
    """events.csv: milliseconds, three types, a transaction only where there is one."""
    types = ("view", "view", "addtocart", "transaction")
    rows = (
        f"{time}000,{1000 + user},{types[kind]},{300 + item},{item if kind == 3 else ''}"
        for user, item, time in _events()
        for kind in [(user + item) % 4]
    )
    return [_write(folder / "events.csv", iter(["timestamp,visitorid,event,itemid,transactionid", *rows]))]


def yoochoose(folder: Path) -> list[Path]:
    """yoochoose-clicks.dat: no header, ISO times, a category that is 0 or a letter."""
    rows = (
        f"{user + 1},{_utc(time):%Y-%m-%dT%H:%M:%S}.{item:03d}Z,2145{item:05d},{'S' if item % 5 == 0 else 0}"
        for user, item, time in _events()
    )
    return [_write(folder / "yoochoose-clicks.dat", rows)]


def diginetica(folder: Path) -> list[Path]:
    """train-item-views.csv: sessions, hardly any user, days and milliseconds within the session."""
    rows = (
        f"{user + 1};{user if user % 20 == 0 else 'NA'};{item + 80};{time % 1_000_000};{_utc(time):%Y-%m-%d}"
        for user, item, time in _events()
    )
    header = "sessionId;userId;itemId;timeframe;eventdate"
    return [_write(folder / "train-item-views.csv", iter([header, *rows]))]


def lastfm_1k(folder: Path) -> list[Path]:
    """Tabs, no header, no quotes: names that begin with one, and tracks without an id."""
    rows = (
        "\t".join(
            (
                f"user_{user + 1:06d}",
                f"{_utc(time):%Y-%m-%dT%H:%M:%SZ}",
                f"f1b1cf71-bd35-4e99-8624-24a6e15f{item:04d}",
                f'"Weird Al" {item}' if item % 5 == 0 else f"Artist {item}",
                "" if item % 4 == 0 else f"62e4f0d6-0000-4e99-8624-24a6e15f{item:04d}",
                f'"Track {item}' if item % 7 == 0 else f"Track {item}",
            )
        )
        for user, item, time in _events()
    )
    return [_write(folder / "userid-timestamp-artid-artname-traid-traname.tsv", rows)]


def mind(folder: Path) -> list[Path]:
    """behaviors.tsv: impressions in one field, the taken ones with -1; news.tsv with categories and titles."""
    rng = random.Random(1)
    rows = (
        f"{number + 1}\tU{user + 13_740}\t{_utc(time):%m/%d/%Y %I:%M:%S %p}\t"
        + " ".join(f"N{rng.randrange(NUM_ITEMS)}" for _ in range(5))
        + f"\tN{(item + 3) % NUM_ITEMS}-0 N{item}-1 N{(item + 7) % NUM_ITEMS}-0"
        for number, (user, item, time) in enumerate(_events(1_573_000_000))
    )
    news = (
        f'N{item}\t{("sports", "news", "lifestyle")[item % 3]}\tsub{item % 5}\tWhat "happened" on day {item}\tAn abstract\thttps://x.y/{item}.html\t[]\t[]'
        for item in range(NUM_ITEMS)
    )
    return [_write(folder / "behaviors.tsv", rows), _write(folder / "news.tsv", news)]


def ga4(folder: Path) -> list[Path]:
    """An export of GA4 as JSON lines: items in an array, microseconds."""
    rows = (
        json.dumps(
            {
                "event_date": f"{_utc(time):%Y%m%d}",
                "event_timestamp": str(time * 1_000_000),
                "event_name": ("view_item", "add_to_cart", "purchase")[item % 3],
                "user_pseudo_id": f"{1_000_000 + user}.{user}99",
                "device": {"category": "mobile", "language": "en-us"},
                "items": [
                    {"item_id": f"GGOE{item:04d}", "item_name": f"Thing {item}", "price": item + 0.5},
                    {"item_id": f"GGOE{(item + 1) % NUM_ITEMS:04d}", "item_name": "Another", "price": 1.0},
                ],
            }
        )
        for user, item, time in _events(1_610_000_000)
    )
    return [_write(folder / "ga4.json", rows)]


def beauty(folder: Path) -> list[Path]:
    """Beauty.txt of S3-Rec: a user and its items per line; an object from items to attributes."""
    items: dict[int, list[int]] = {}
    for user, item, _ in _events():
        items.setdefault(user + 1, []).append(item + 1)
    rows = (f"{user} {' '.join(map(str, taken[: 5 + user % 7]))}" for user, taken in sorted(items.items()))
    attributes = {str(item + 1): [item % 7 + 1, item % 3 + 1] for item in range(NUM_ITEMS)}
    (folder / "Beauty_item2attributes.json").write_text(json.dumps(attributes))
    return [_write(folder / "Beauty.txt", rows), folder / "Beauty_item2attributes.json"]


FORMS: dict[str, Callable[[Path], list[Path]]] = {
    form.__name__: form
    for form in (movielens_csv, retailrocket, yoochoose, diginetica, lastfm_1k, mind, ga4, beauty)
}
