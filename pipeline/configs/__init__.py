"""Shipped configurations: the demo, public data sets, model presets."""

from pathlib import Path


def find(name: str | Path) -> Path:
    """Path of a configuration: the file itself, else the shipped configuration of this name (`demo` or `demo.toml`)."""
    path = Path(name)
    shipped = Path(__file__).with_name(f"{path.name.removesuffix('.toml')}.toml")
    return shipped if not path.exists() and path.name == str(name) and shipped.exists() else path
