"""Text of a log on its way to a person: to a terminal or page by `printable`, into Markdown by `markdown`."""

import re

LONGEST = 200
"""Characters of a text from the log in a message."""
_MARKUP = re.compile(r"([\\`*_\[\]<>()|!#~$&@])")
_LINK = re.compile(r"(?i)(https?|ftp|mailto|www)([:.])")


def printable(text: str, limit: int | None = None) -> str:
    """Text on one line, cut to `limit` characters with an ellipsis.

    Characters that are not printable (control characters, line ends, marks of direction, lone surrogates) are escaped.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def printable_lines(text: str) -> str:
    """A message of several lines, each as `printable` gives it."""
    return "\n".join(map(printable, text.split("\n")))


def markdown(text: str, limit: int = LONGEST) -> str:
    """Printable text that Markdown shows as it is: no emphasis, link, picture, table cell or HTML."""
    return _LINK.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", printable(text, limit)))
