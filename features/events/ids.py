"""Ids of users and items, exactly as the source has them: int64 or string, and never a float in between."""

import polars as pl

from features.schema import IdType

LARGEST_EXACT_FLOAT = 2**53
LONGEST_BYTES = 64 << 10
"""Maximum length of an id or an event type, in UTF-8."""
_BLANKS = (" ", "\t", "\u00a0")


def plain(ids: pl.Series) -> pl.Series:
    """Ids of any column type as Int64 where that type holds integers of 64 bits, else as String; nulls stay.

    Whole floats become their integer (17850.0 is 17850; a column of integers with gaps is often stored so), NaN null.

    Raises ValueError for lists and structs.
    """
    kind = ids.dtype
    if kind.is_nested():
        raise ValueError(f"ids are {kind}, expected integers or text")
    if kind.is_float():
        whole = (ids == ids.round()) & (ids.abs() <= LARGEST_EXACT_FLOAT)
        text = ids.cast(pl.Int64, strict=False).cast(pl.String)
        return text.zip_with(whole.fill_null(value=False), ids.cast(pl.String)).set(ids.is_nan(), None)
    if kind.is_integer() and kind not in (pl.UInt64, pl.Int128, pl.UInt128):
        return ids.cast(pl.Int64)
    return ids.cast(pl.String, strict=False)


def is_missing(ids: pl.Series) -> pl.Series:
    """[n] whether an id is missing: null, empty, or only blanks."""
    if ids.dtype != pl.String:
        return ids.is_null()
    is_low = (ids < "!").fill_null(value=True)  # empty, or begins with a blank or a control character
    if not is_low.any():
        return is_low
    return is_low & (ids.str.strip_chars() == "").fill_null(value=True)


def is_too_long(ids: pl.Series) -> pl.Series:
    """[n] whether a text is longer than LONGEST_BYTES."""
    return (ids.str.len_bytes() > LONGEST_BYTES).fill_null(value=False)


def canonical(ids: pl.Series) -> pl.Series:
    """[n] Int64: each id of `plain` as an integer, null where it is not written as one.

    -?[1-9][0-9]* or 0 within 64 bits, and the same followed by .0 or between blanks; not 007, +7 or -0.
    """
    if ids.dtype == pl.Int64:
        return ids
    number = ids.cast(pl.Int64, strict=False)
    is_signed = (ids < "1").fill_null(value=False)  # or begins with a zero or a blank
    if is_signed.any():
        number = number.scatter(is_signed.arg_true(), _as_written(ids.filter(is_signed)))
    is_odd = number.is_null() & ids.is_not_null()
    if not is_odd.any():
        return number
    return number.scatter(is_odd.arg_true(), _as_written(spelled(ids.filter(is_odd))))


def _as_written(ids: pl.Series) -> pl.Series:
    """[n] Int64: each text as an integer, null where that is written otherwise."""
    number = ids.cast(pl.Int64, strict=False)
    return number.set(number.cast(pl.String) != ids, None)


def may_be_odd(text: pl.Expr) -> pl.Expr:
    """Whether a text id is empty or may have another spelling; the slower patterns follow."""
    return pl.any_horizontal(
        text < "!",  # empty, or begins with a blank or a control character
        *(text.str.ends_with(blank) for blank in _BLANKS),
        text.str.ends_with("0") & text.str.contains(".", literal=True),
    )


def spelled(ids: pl.Series) -> pl.Series:
    """[n] Text ids in their one spelling: without outer blanks, and whole numbers without .0 at their end."""
    is_odd = (
        ids.alias("id").to_frame().select_seq(may_be_odd(pl.col("id")).fill_null(value=False)).to_series()
    )
    if not is_odd.any():
        return ids
    odd = ids.filter(is_odd).str.strip_chars().str.replace(r"^(0|-?[1-9]\d*)\.0+$", "$1")
    return ids.scatter(is_odd.arg_true(), odd)


def typed(ids: pl.Series, kind: IdType) -> pl.Series:
    """Ids of `plain` in their final type and spelling; null where int64 is required and the id is not a canonical one."""
    if kind == "int64":
        return canonical(ids)
    return spelled(ids) if ids.dtype == pl.String else ids.cast(pl.String)


def describe_bad(text: object) -> str:
    """What is wrong with an id that is refused."""
    num_bytes = len(str(text).encode())
    if num_bytes > LONGEST_BYTES:
        return f"{num_bytes:,} bytes, expected at most {LONGEST_BYTES:,}"
    return 'not an integer of 64 bits, which id_types = "int64" asks for'


def have_form_of(ids: pl.Series, known: pl.Series) -> pl.Series:
    """[n] whether ids look like the known ones: the same kinds of characters, at most one more or fewer than they have."""
    forms = _forms(known.cast(pl.String))
    lengths = known.cast(pl.String).str.len_chars()
    text = ids.cast(pl.String)
    shortest, longest = lengths.min() or 0, lengths.max() or 0
    is_long_enough = text.str.len_chars().is_between(int(str(shortest)) - 1, int(str(longest)) + 1)
    return _forms(text).is_in(forms.unique().implode()) & is_long_enough


def _forms(text: pl.Series) -> pl.Series:
    """[n] kinds of characters of each id: digits, letters, and others by themselves, each once."""
    kinds = text.str.replace_all(r"\d", "9").str.replace_all(r"\pL", "a")
    return kinds.str.split("").list.unique().list.sort().list.join("")
