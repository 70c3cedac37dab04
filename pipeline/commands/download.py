"""`lookback data`: download a configuration's public data set and check its digest."""

import errno
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import pooch
import requests

from pipeline.artifacts.scratch import scratch
from pipeline.config import Config
from pipeline.credentials import masked
from pipeline.errors import LookbackError
from pipeline.sections import DataConfig

TIMEOUT_SECONDS = 30.0


def download(config: Config, show_progress: bool | None = None) -> str:
    """Download the files of `[data]` into their folder; returns one summary line.

    The archive stays beside the folder: extracted files are checked against it, and an interrupted extraction needs no
    second download. Without an archive, existing files are accepted as they are.
    Raises LookbackError for a data set without an address, a failed download, a wrong digest, a folder that cannot be
    written, files that differ from the archive's.
    """
    data = config.data
    if data is None:
        raise LookbackError(
            f"configuration {config.name!r}: no section [data], so nothing to download; put the log at events.path "
            "and run `lookback run ingest`"
        )
    folder = Path(data.folder)
    archive = folder.with_name(f"{folder.name}.zip")
    missing = [name for name in data.files if not (folder / name).is_file()]
    if not missing and data.files and not archive.is_file():
        return f"{folder}: {', '.join(data.files)} already there, put by hand and not checked: nothing to do"
    if data.url is None:
        raise LookbackError(
            f"data set {config.name!r}: {', '.join(missing)} missing in {folder}, and there is no public address "
            f"with a fixed digest to download from. {data.instructions.strip()}"
        )
    try:
        if not archive.is_file():
            _fetch(data, archive, sys.stderr.isatty() if show_progress is None else show_progress)
        _check_digest(data, archive)
        written = _extract(data, archive, folder)
    except OSError as error:
        raise LookbackError(_explain_os_error(error, folder)) from None
    if not written:
        return f"{folder}: {', '.join(data.files)} already there and correct: nothing to do"
    return f"{folder}: {', '.join(written)} from {masked(data.url)}, {data.digest or 'digest not pinned'}"


def _fetch(data: DataConfig, archive: Path, show_progress: bool) -> None:
    """Download to a temporary file, without those of killed downloads; rename it into place once its digest is right."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    downloader = pooch.HTTPDownloader(progressbar=show_progress, timeout=TIMEOUT_SECONDS)
    with scratch(archive.parent) as temporary:
        partial = temporary / archive.name
        try:
            downloader(data.url, str(partial), None)
        except requests.RequestException as error:
            raise LookbackError(
                f"{data.url}: the download failed: {_reason(error)}; expected the archive for {data.folder}. "
                "Nothing was written. Check the connection and run `lookback data` again, or put "
                f"{', '.join(data.files) or 'the files'} into {data.folder} by hand"
            ) from None
        _check_digest(data, partial)
        partial.replace(archive)


def _reason(error: requests.RequestException) -> str:
    match error:
        case requests.HTTPError() if error.response is not None:
            return f"the server answered {error.response.status_code} {error.response.reason}"
        case requests.Timeout():
            return f"no answer within {TIMEOUT_SECONDS:.0f} s"
        case requests.exceptions.ChunkedEncodingError():
            return "the connection broke off before the end"
        case requests.ConnectionError():
            return "the server cannot be reached"
    return str(error)


def _check_digest(data: DataConfig, archive: Path) -> None:
    if data.digest is None:
        return
    algorithm, _, expected = data.digest.rpartition(":")
    received = pooch.file_hash(str(archive), alg=algorithm or "sha256")
    if received != expected.lower():
        raise LookbackError(
            f"{data.url}: wrong digest: received {algorithm}:{received}, expected {data.digest}. Nothing "
            f"was extracted. Remove {Path(data.folder).with_name(archive.name)} if it is there and run `lookback data` again; "
            "if it stays wrong, the published file has changed"
        )


def _extract(data: DataConfig, archive: Path, folder: Path) -> list[str]:
    """Extract the missing files, each renamed into place when complete; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    try:
        with zipfile.ZipFile(archive) as source:
            for name in data.files:
                member = source.getinfo(f"{data.member}/{name}" if data.member else name)
                target = folder / name
                if target.is_file():
                    _check_same(member, target, archive)
                    continue
                with scratch(folder.parent) as temporary:
                    partial = temporary / name
                    for place in (partial, target):
                        place.parent.mkdir(parents=True, exist_ok=True)
                    with source.open(member) as packed, partial.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked, 1 << 20)
                    partial.replace(target)
                written.append(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise LookbackError(
            f"{archive}: not the archive that [data] describes: {error}; expected a zip file with "
            f"{', '.join(data.files)} in {data.member or 'its root'}. Remove it and run `lookback data` again"
        ) from None
    return written


def _check_same(member: zipfile.ZipInfo, target: Path, archive: Path) -> None:
    """Refuse a file whose size or CRC-32 differs from the archive's: overwriting it could lose work."""
    checksum = 0
    with target.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    if (target.stat().st_size, checksum) != (member.file_size, member.CRC):
        raise LookbackError(
            f"{target}: received {target.stat().st_size} bytes with CRC {checksum:08x}, expected {member.file_size} "
            f"bytes with CRC {member.CRC:08x} as in {archive}. Move the file away and run `lookback data` again, or "
            f"remove {archive} to keep the file as it is"
        )


def _explain_os_error(error: OSError, folder: Path) -> str:
    where = error.filename or folder
    if error.errno == errno.ENOSPC:
        return f"{where}: no space left on the device; free some and run `lookback data` again"
    return (
        f"{where}: cannot be written ({error.strerror or error}); expected a writable folder for the data set. "
        "Nothing half-written was left. Change its permissions, or `[data] folder` in the configuration"
    )
