"""An environment for peers, in the user's cache: lwlab's own packages and, beside them, the peer's.

The peer then runs in one process with lwlab, on the same PyTorch, and lwlab's environment stays as
it is. Other pins, or another environment of lwlab's own, make another folder.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from lwlab import paths
from lwlab.errors import FetchError

_MARK = "LWLAB_BENCH_PEERS"


def inside() -> bool:
    """Whether this process runs in an environment made here."""
    return os.environ.get(_MARK) == "1"


def folder(pins: Path) -> Path:
    """Return where the environment of the requirements file `pins` is, or will be."""
    import torch

    about = "\n".join(
        [pins.read_text(encoding="utf-8"), sys.prefix, sys.version, torch.__version__]
    )
    name = f"{pins.stem}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
    return paths.cache_dir() / "bench" / name


def create(pins: Path) -> Path:
    """Make the environment of `pins` where it is missing; return its Python.

    What lwlab's environment has already is seen, not installed again. Raises FetchError when pip
    cannot install the pins.
    """
    home = folder(pins)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with paths.lock(f"bench-{home.name}"):
        if (home / "ready").exists():
            return python
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)], pins)
        scheme = {"base": str(home), "platbase": str(home)}
        here = Path(sysconfig.get_path("purelib", "venv", scheme))
        # addsitedir, not a bare path: lwlab itself may be there as a .pth file.
        seen = sorted({sysconfig.get_path(k) for k in ("purelib", "platlib")})
        lines = [f"import site; site.addsitedir({p!r})\n" for p in seen]
        (here / "lwlab_environment.pth").write_text("".join(lines), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
        _run([*pip, "-r", str(pins)], pins)
        (home / "ready").touch()
    return python


def again(pins: Path, arguments: Sequence[str]) -> int:
    """Run lwlab's command line with `arguments` in the environment of `pins`; its exit code."""
    code = "from lwlab.cli import main; main()"
    environment = {**os.environ, _MARK: "1"}
    return subprocess.run([create(pins), "-c", code, *arguments], env=environment).returncode


def _run(command: list[str], pins: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(
            f"the peers of {pins.name} could not be installed ({why}). They come from a package "
            "index, so this needs a network once; without --peers, what lwlab's own environment "
            "holds is measured alone."
        )
