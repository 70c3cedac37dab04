"""Users to arms: uniform, independent between salts, the same wherever and however the users are counted."""

import hashlib

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2_contingency, chisquare

from pipeline.serving.assignment import Assignment, keys_of

NUM = 20_000
IDS = {
    "integers": pl.Series(range(NUM)),
    "text": pl.Series([f"u{number:06}" for number in range(NUM)]),
    "far apart": pl.Series(np.arange(NUM, dtype=np.int64) * 1_000_003 - 2**62),
}
TENTHS = Assignment("2026-11", {str(number): 0.1 for number in range(10)})


def test_the_hash_is_that_of_blake2b_keyed_with_the_salt() -> None:
    """Two bytes of the digest by hand; an id counts as text; without a salt the hash has no key."""
    (key,) = keys_of(pl.Series([7]), "2026-11")
    digest = hashlib.blake2b(b"7", digest_size=8, key=b"2026-11").digest()
    assert (int(key) & 255, int(key) >> 56) == (digest[0], digest[7])
    assert keys_of(pl.Series(["7"]), "2026-11")[0] == key
    assert int(keys_of(pl.Series(["7"]))[0]) == int.from_bytes(
        hashlib.blake2b(b"7", digest_size=8).digest(), "little"
    )


def test_the_arms_of_some_users_for_ever() -> None:
    halves = Assignment("pepper", {"one": 0.5, "other": 0.5})
    ids = pl.Series(["7", "u1", "ä", "", "a b"])
    own = [hashlib.blake2b(value.encode(), digest_size=8, key=b"pepper").digest()[7] >= 128 for value in ids]
    assert halves.of(ids).tolist() == own
    assert halves.names_of(ids).to_list() == ["other" if second else "one" for second in own]
    assert halves.of(pl.Series([], dtype=pl.String)).tolist() == []


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_shares_are_those_asked_for(ids: pl.Series) -> None:
    """Chi-square of fixed ids, so the p of a right hash is a constant: far from both ends."""
    assert 0.001 < chisquare(np.bincount(TENTHS.of(ids), minlength=10)).pvalue < 0.999
    uneven = Assignment("2026-11", {"champion": 0.9, "challenger": 0.07, "popularity": 0.03})
    counts = np.bincount(uneven.of(ids), minlength=3)
    assert chisquare(counts, NUM * np.array([0.9, 0.07, 0.03])).pvalue > 0.001


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_salts_are_independent(ids: pl.Series) -> None:
    one, two = TENTHS.of(ids), Assignment("2026-12", TENTHS.shares).of(ids)
    table = np.bincount(one * 10 + two, minlength=100).reshape(10, 10)
    assert 0.001 < chi2_contingency(table).pvalue < 0.999


def test_a_user_s_arm_depends_on_no_other_user() -> None:
    ids = IDS["text"]
    order = np.random.default_rng(0).permutation(NUM)
    assert np.array_equal(TENTHS.of(ids.gather(order)), TENTHS.of(ids)[order])
    parts = [TENTHS.of(ids[start : start + 999]) for start in range(0, NUM, 999)]
    assert np.array_equal(np.concatenate(parts), TENTHS.of(ids))
    assert np.array_equal(TENTHS.of(IDS["integers"].cast(pl.String)), TENTHS.of(IDS["integers"]))


def test_a_larger_last_arm_keeps_its_users() -> None:
    few, more = (
        Assignment("s", {"champion": 1 - share, "challenger": share}).of(IDS["text"]) for share in (0.1, 0.3)
    )
    assert (more[few == 1] == 1).all()
