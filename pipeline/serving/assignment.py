"""Assignment of users to the arms of an experiment, by a hash of salt and user id."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray


def keys_of(ids: pl.Series, salt: str = "") -> NDArray[np.uint64]:
    """[n] hashes of the ids as text, uniform on 0..2^64 - 1 and the same in every log: 7 and "7" are alike.

    Little-endian integers of BLAKE2b with a digest of 8 bytes, the salt (of 64 bytes at most) as its key (RFC 7693). Those of
    different salts are independent.
    """
    start = hashlib.blake2b(digest_size=8, key=salt.encode())
    digests = []
    for value in ids:
        own = start.copy()
        own.update(str(value).encode())
        digests.append(own.digest())
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


@dataclass(frozen=True)
class Assignment:
    """Shares of the arms, and the salt by which users are drawn into them."""

    salt: str
    shares: Mapping[str, float]
    """Arm to share of the users; they add up to 1"""

    def of(self, ids: pl.Series) -> NDArray[np.int64]:
        """[n] arm of each user, as a position in `shares`: that in whose interval of the shares' sums the hash / 2^64 lies."""
        ends = np.cumsum(list(self.shares.values()))[:-1]
        part = (keys_of(ids, self.salt) >> np.uint64(11)) * 2.0**-53
        return np.searchsorted(ends, part, side="right")

    def names_of(self, ids: pl.Series) -> pl.Series:
        """[n] name of each user's arm."""
        return pl.Series("arm", list(self.shares), dtype=pl.String).gather(self.of(ids))
