"""Where lwlab keeps its files, and how it writes them so that nothing half-written is ever seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from lwlab.errors import FetchError


def cache_dir() -> Path:
    """Return lwlab's cache folder: `$LWLAB_CACHE` if it is set, else the user's cache folder.

    The folder is not created here; whoever writes into it creates it.
    """
    chosen = os.environ.get("LWLAB_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("lwlab", appauthor=False)


def models_dir() -> Path:
    """Return the folder of the models that lwlab fetched or converted itself."""
    return cache_dir() / "models"


def sync(path: Path) -> None:
    """Ask the system to put a file's (or, where it can, a folder's) contents on the disk."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) so that readers see the old file or the new one, never a part.

    The bytes go to a sibling file, are synced, and take the place of `path` in one `os.replace`.
    When anything fails, the sibling is removed and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    part = _sibling(path)
    try:
        with part.open("xb") as out:
            out.write(raw)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def publish_dir(final: Path) -> Iterator[Path]:
    """Yield an empty sibling folder to fill; when the block ends well it becomes `final`.

    Files are synced first and an older `final` is moved away, so a crash leaves the old folder or
    the new one. When the block raises, the sibling is removed and `final` is as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = _sibling(final)
    staging.mkdir()
    try:
        yield staging
        readable = staging.stat().st_mode & 0o666  # safetensors writes 0600 whatever the umask
        for path in sorted(staging.rglob("*")):
            if path.is_file():
                path.chmod(readable)
            sync(path)
        if final.exists():
            old = _sibling(final)
            os.replace(final, old)
            os.replace(staging, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(staging, final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def sweep(final: Path) -> None:
    """Remove what killed runs left beside `final` (call it while holding `lock(final.name)`)."""
    for left in final.parent.glob(f".{final.name}.*.part"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(name: str, timeout: float = 1800.0) -> Iterator[None]:
    """Hold the cache's lock called `name`, across processes and threads.

    Raises FetchError when another process still holds it after `timeout` seconds. The system drops
    the lock of a process that dies.
    """
    from filelock import FileLock, Timeout

    path = cache_dir() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=timeout):
            yield
    except Timeout:
        raise FetchError(
            f"another process has held the lock on {name!r} for over {timeout:.0f} seconds; "
            f"end it or, if there is none, delete {path}"
        ) from None


def _sibling(path: Path) -> Path:
    # Not tempfile: its 0600 and 0700 modes would hide a shared cache from the other users.
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
