"""Damaged files, a few of the cases that tests/fuzz/fuzz.py runs by the ten thousand, and arbitrary bytes."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import fuzz
from tests.fuzz.fuzz import Origin

MADE = fuzz.made_files()


@pytest.mark.parametrize("cases", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_damaged_files_lose_no_row_and_raise_no_traceback(cases: int) -> None:
    outcomes = fuzz.fuzz(0, cases, seed=1, origins=MADE)
    assert outcomes["read"] > cases / 3
    assert outcomes["refused"] > cases / 12


@pytest.mark.data
def test_damaged_heads_of_real_files(public_data: Callable[[str], Path]) -> None:
    public_data("ml-1m")
    assert fuzz.fuzz(0, 40, seed=2, origins=fuzz.real_files()).total() == 40


def test_whole_files_are_read(tmp_path: Path) -> None:
    for origin in MADE:
        for seed in range(3):
            assert fuzz.run(random.Random(seed), origin, tmp_path) in ("read", "text ids"), origin.name


texts = st.text(st.sampled_from('",;:{}[]\\ \t\r\n\x00\ufeff01.-eé') | st.characters(), max_size=80)


arbitrary = given(
    st.binary(max_size=80) | texts.map(lambda text: text.encode(errors="surrogatepass")),
    st.sampled_from(MADE),
    st.sampled_from(["", ".gz", ".bz2", ".zst"]),
    st.booleans(),
    st.integers(0, 1 << 20),
)


def read(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    origin: Origin,
    suffix: str,
    pack: bool,
    seed: int,
) -> None:
    """After the first line of a real file, so that columns are found, or alone."""
    if seed % 2:
        content = origin.content[: origin.content.find(b"\n") + 1] + content
    if suffix and pack:
        content = fuzz.PACKS[suffix](content)
    rng = random.Random(seed)
    with fuzz.small_blocks(rng):
        fuzz.run(rng, Origin(origin.name + suffix, content, origin.form), tmp_path_factory.mktemp("fuzz"))


test_arbitrary_bytes = settings(max_examples=100)(arbitrary(read))
test_many_arbitrary_bytes = pytest.mark.slow(settings(max_examples=1500)(arbitrary(read)))
