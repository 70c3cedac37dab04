"""The HTML pages that are written: where their templates lie, and how values come into them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from pipeline.reporting import style


def template(name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """The template NAME.html.j2 beside this file, with the `filters` and with `named`, which is `drawing.spoken`.

    Values are escaped; one that is not given raises jinja2.UndefinedError.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"named": style.spoken, **filters}
    return environment.get_template(f"{name}.html.j2")
