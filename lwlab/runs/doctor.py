"""What is wrong with an installation, and what to do about each thing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from lwlab import paths

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Check:
    """One line: state is 'ok', 'note' (works without it) or 'bad'; `fix` says what to do."""

    state: str
    what: str
    fix: str = ""


def examine(kernel: bool = True) -> Iterator[Check]:
    """Yield checks as they are made; with `kernel`, a Jupyter kernel is really started (3 s)."""
    steps: list[Callable[[], Iterator[Check]]] = [
        _python, _requirements, _torch, _cache, _model, _widgets, _optional,
    ]  # fmt: skip
    if kernel:
        steps.insert(-1, _kernel)
    for step in steps:
        try:
            yield from step()
        except Exception as e:
            name = step.__name__.strip("_")
            yield Check("bad", f"{name}: {type(e).__name__}: {e}", "reinstall lwlab and try again")


def _python() -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata("lwlab")["Requires-Python"] or ""
    have = platform.python_version()
    state = "ok" if SpecifierSet(wanted).contains(have, prereleases=True) else "bad"
    yield Check(state, f"Python {have} ({sys.executable})", f"use Python {wanted}")


def _requirements() -> Iterator[Check]:
    """Compare what is installed with the ranges lwlab declares."""
    from packaging.requirements import Requirement

    right = []
    for line in metadata.requires("lwlab") or []:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        fix = f'python -m pip install "{need.name}{need.specifier}"'
        try:
            have = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Check("bad", f"{need.name} is not installed", fix)
            continue
        if need.specifier.contains(have, prereleases=True):
            right.append(f"{need.name} {have}")
        else:
            yield Check("bad", f"{need.name} is {have}, lwlab needs {need.specifier}", fix)
    main = [r for r in right if r.split()[0] in ("torch", "nnsight", "transformers")]
    yield Check("ok", f"{len(right)} requirements in range, {', '.join(main)} among them")


def _torch() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        yield Check("ok", f"GPU: {torch.cuda.get_device_name(0)}")
    else:
        built = "this torch is built for CUDA" if torch.version.cuda else "CPU build of torch"
        yield Check("note", f"no GPU ({built})", "the default notebooks do not need one")
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    fix = "on a machine shared with others, OMP_NUM_THREADS=1 can be much faster"
    yield Check("ok" if threads < cores else "note", f"{threads} threads on {cores} cores", fix)


def _cache() -> Iterator[Check]:
    folder = paths.cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        fix = "set LWLAB_CACHE to a folder you can write to"
        yield Check("bad", f"cache {folder} cannot be written: {e.strerror}", fix)
        return
    yield Check("ok", f"cache {folder}")


def _model() -> Iterator[Check]:
    from lwlab.models import stored, zoo

    entry = zoo.ENTRIES[DEFAULT_MODEL]
    folder = paths.models_dir() / DEFAULT_MODEL
    if folder.is_dir():
        wrong = stored.damage(folder, full=True)
        fix = f"lwlab fetch {DEFAULT_MODEL} --again"
        yield Check("bad" if wrong else "ok", f"{DEFAULT_MODEL} {wrong or 'is complete'}", fix)
        return
    need = (entry.disk + entry.download * 2) / 1e9
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    if free < need:
        fix = f"free {need:.1f} GB, or set LWLAB_CACHE to another disk"
        yield Check("bad", f"{free:.1f} GB free for {DEFAULT_MODEL}, which is not here yet", fix)
    else:
        size = f"{entry.download / 1e6:.0f} MB"
        fix = f"lwlab fetch {DEFAULT_MODEL} ({size}); notebooks fetch it when they need it"
        yield Check("note", f"{DEFAULT_MODEL} is not here yet; {free:.0f} GB free", fix)


def _existing(folder: Path) -> Path:
    return next(p for p in (folder, *folder.parents) if p.exists())


def _widgets() -> Iterator[Check]:
    spec = util.find_spec("lwlab_widgets")
    root = Path(spec.origin).parent if spec and spec.origin else None
    scripts = sorted(root.rglob("*.js")) if root else []
    fix = "reinstall lwlab: its wheel carries the widgets' scripts"
    empty = [p.name for p in scripts if not p.stat().st_size]
    if not scripts or empty:
        yield Check("bad", f"widget scripts missing: {', '.join(empty) or 'all'}", fix)
    else:
        yield Check("ok", f"{len(scripts)} widget scripts")


def _kernel() -> Iterator[Check]:
    from lwlab._quick import quick_imports
    from lwlab.notebook import run_notebook

    quick_imports()
    from nbformat import v4

    nb = v4.new_notebook(cells=[v4.new_code_cell("import lwlab")])
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_notebook(nb, Path(folder) / "kernel.ipynb", timeout=90)
    if outcome.failure is None:
        yield Check("ok", f"Jupyter kernel starts and imports lwlab ({outcome.seconds:.0f} s)")
    else:
        failure = f"{outcome.failure.name}: {outcome.failure.message}"
        yield Check(
            "bad", f"Jupyter kernel: {failure}", "python -m pip install --upgrade ipykernel"
        )


def _optional() -> Iterator[Check]:
    has_lab = util.find_spec("jupyterlab") is not None
    fix = "python -m pip install 'lwlab[lab]' for `lwlab lab`"
    yield Check("ok" if has_lab else "note", f"JupyterLab {'' if has_lab else 'not '}found", fix)
    found = next((b for b in ("chromium", "google-chrome") if shutil.which(b)), None)
    fix = "only the browser tests need it: apt-get install chromium"
    yield Check("ok" if found else "note", f"{found or 'no Chromium'} found", fix)
