"""Templates of HTML pages."""

import base64
import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from pipeline.evaluation.metric_names import display_name


def template(name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """Load the template NAME.html.j2 with `filters` and with `named`, which is `display_name`.

    Values are escaped; a missing one raises jinja2.UndefinedError.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"named": display_name, **filters}
    environment.globals["plotly_js"] = _plotly_js
    return environment.get_template(f"{name}.html.j2")


@functools.cache
def _plotly_js() -> str:
    """plotly.js, compressed with gzip, in base64."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
