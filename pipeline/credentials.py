"""Credentials in addresses and the environment: split off for requests, masked in every text that is shown or kept."""

import os
import re
from typing import NamedTuple

_SCHEME = r"\b[a-zA-Z][a-zA-Z0-9+.-]*://"
_ADDRESS = re.compile(rf"""({_SCHEME})([^\s/?#'"]*|[^\s/@'"]*:(?!\d*/)[^\s@'"]*)@""")
"""Scheme and user part. A colon before the first slash begins a password with slashes, unless a port follows it."""
_WITH_QUERY = re.compile(rf"""({_SCHEME}[^\s?'"]*\?)([^\s#'"]*=[^\s#'"]*)""")
_NAMED = re.compile(r"""(?i)([?&;][\w.-]*(?:passw|pwd|token|secret|sig|credential|key)[\w.-]*=)[^&;\s'"#]+""")
"""Part of a query whose name says that it is secret, in a text without the address before it."""
_SECRET_NAME = re.compile("PASSWORD|SECRET|TOKEN|_KEY$")
_SHORTEST = 4
"""Characters of a variable's value below which it is taken for a word, not a secret."""


class Address(NamedTuple):
    """Address without its credentials, and the credentials."""

    address: str
    user: str
    """Empty where the address names none."""
    password: str


def split(address: str) -> Address:
    """Split user and password, still percent-encoded, off an address."""
    found = _ADDRESS.match(address)
    if found is None:
        return Address(address, "", "")
    user, _, password = found[2].partition(":")
    return Address(found[1] + address[found.end() :], user, password)


def masked(text: str) -> str:
    """Replace by `***` what a text has of credentials.

    These are the user part and the query's values of an address, and values of environment variables whose name speaks of
    a password, secret, token or key.
    """
    for secret in _secrets():
        text = text.replace(secret, "***")
    if "://" in text:
        text = _ADDRESS.sub(r"\1***@", text)
        text = _WITH_QUERY.sub(lambda found: found[1] + re.sub("=[^&;]*", "=***", found[2]), text)
    return _NAMED.sub(r"\1***", text) if "=" in text else text


def _secrets() -> list[str]:
    """Secret values in the environment, the longest first."""
    values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
