"""The files that come in from outside: which they are, and the demo's, which are generated."""

import glob
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.store import Digests, read_json, write_json

SIMULATION_VERSION = 1
"""Raised when the same settings and seed would give another log."""
_REMOTE = ("s3://", "gs://", "az://")


def list_files(key: str, path: str | list[str]) -> list[Path]:
    """The files of a path, folder, glob or list of them, sorted; hidden ones and those that begin with `_` are passed over.

    Raises LookbackError naming the configuration key where there is none.
    """
    files: list[Path] = []
    for each in path if isinstance(path, list) else [path]:
        if each.startswith(_REMOTE):
            raise LookbackError(
                f"{key}: {each!r} is in an object store; this version reads local files: copy it here first"
            )
        place = Path(each)
        if place.is_dir():
            found = [
                file for file in place.rglob("*") if file.is_file() and not _hidden(file.relative_to(place))
            ]
        elif place.is_file():
            found = [place]
        else:
            found = [Path(name) for name in glob.glob(each, recursive=True) if Path(name).is_file()]  # noqa: PTH207
        if not found:
            raise LookbackError(
                f"{key}: nothing at {each!r} (from {Path.cwd()}); expected a file, a folder with files, or a glob that "
                "matches some. If the configuration names a public data set, `lookback data` downloads it"
            )
        files += found
    return sorted(set(files))


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def source_digests(config: Config) -> dict[str, dict[str, str]]:
    """Path to content digest of every source file, by role: events, items, users, exclude_users."""
    simulate_if_needed(config)
    digests = Digests(config.folder / ".digests.json")
    wanted = {
        "events": config.events.path,
        "items": config.items.path if config.items else None,
        "users": config.users.path if config.users else None,
        "exclude_users": config.events.exclude_users,
    }
    sources = {}
    for role, path in wanted.items():
        key = "events.exclude_users" if role == "exclude_users" else f"{role}.path"
        if path is not None:
            sources[role] = {str(file): digests(file) for file in list_files(key, path)}
    return sources


def digest_of(config: Config, key: str, path: str) -> str:
    """Content digest of the one file that a configuration key names."""
    return Digests(config.folder / ".digests.json")(list_files(key, path)[0])


def simulate_if_needed(config: Config) -> None:
    """Generate the demo log into `<data_dir>/<name>/raw/` where its settings or seed are new."""
    if config.simulate is None:
        return
    folder = config.folder / "raw"
    wanted = {"settings": config.simulate.model_dump(), "seed": config.seed, "version": SIMULATION_VERSION}
    marker = folder / "simulation.json"
    if marker.exists() and read_json(marker) == wanted:
        return
    import filelock

    from features import simulate

    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        if marker.exists() and read_json(marker) == wanted:
            return  # another process was faster
        marker.unlink(missing_ok=True)
        settings = simulate.SimulationSettings(**config.simulate.model_dump())
        simulate.write(simulate.simulate(settings, config.seed), folder)
        write_json(marker, wanted)
