"""What a run writes down about itself: libraries, model and checksum, seed, machine, cost."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lwlab import __version__

LIBRARIES = ("torch", "nnsight", "transformers", "numpy", "xarray", "altair", "papermill")


def facts(values: Mapping[str, Any], seconds: float, peak_memory_mb: float) -> dict[str, Any]:
    """Return the record of one run, as it stands in `run.json` and in the executed notebook.

    Parameters
    ----------
    values : the notebook's parameters as they were in effect.
    seconds : wall time of the run, the kernel's start included.
    peak_memory_mb : the most memory its kernel held, in megabytes (2**20 bytes).

    Returns
    -------
    dict with `versions`, `model`, `model_checksum` ("" if the model is not one lwlab can name),
    `seed`, `hardware`, `seconds` and `peak_memory_mb`.
    """
    model = values.get("model")
    return {
        "versions": versions(), "model": model if isinstance(model, str) else "",
        "model_checksum": checksum(model), "seed": values.get("seed"), "hardware": hardware(),
        "seconds": seconds, "peak_memory_mb": peak_memory_mb,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python, lwlab and the libraries its numbers depend on."""
    return {"lwlab": __version__, "python": platform.python_version(), **_libraries()}


def hardware() -> dict[str, Any]:
    """Return what the run had to work with; no name of the machine or of its user.

    `cpu` and `gpu` are the makers' names ("" if unknown or none), `cores` those this process may
    use, `memory_mb` the machine's, `threads` the limit set by `OMP_NUM_THREADS` (None: no limit).
    """
    return {**_machine(), "cores": cores(), "threads": os.environ.get("OMP_NUM_THREADS")}


def cores() -> int:
    """Return the number of processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def _machine() -> dict[str, Any]:
    import psutil  # type: ignore[import-untyped,unused-ignore]

    memory = round(psutil.virtual_memory().total / 2**20)
    system = f"{platform.system()} {platform.machine()}"
    return {"system": system, "cpu": _cpu(), "gpu": _gpu(), "memory_mb": memory}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _gpu() -> str:
    """Return the driver's name of the first NVIDIA GPU: asking torch would import it here."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            for line in path.read_text().splitlines():
                if line.startswith("Model:"):
                    return line.partition(":")[2].strip()
        except OSError:
            continue
    return ""


def known(model: Any) -> bool:
    """Say whether `model` is a name `lw.load` may know: an entry, a hub id, a folder or a file."""
    from lwlab.models import hub, zoo

    if not isinstance(model, str) or not model:
        return False
    return model in zoo.ENTRIES or hub.is_id(model) or hub.looks_like_path(model)


def checksum(model: Any) -> str:
    """Return the checksum of a model that lies on this machine; "" for any other, never fetching.

    It is what `Model.checksum` says: a hub commit, or 16 digits of SHA-256 over the weights.
    """
    from lwlab.errors import LwlabError
    from lwlab.models import hub, stored, zoo
    from lwlab.paths import models_dir

    if not known(model):
        return ""
    try:
        if model in zoo.ENTRIES:
            folder = models_dir() / model
            return stored.checksum(folder) if folder.is_dir() else ""
        if hub.is_id(model) and not hub.looks_like_path(model):
            return _commit(model)
        return zoo.resolve(model).checksum
    except (LwlabError, OSError):
        return ""


def _commit(model: str) -> str:
    from huggingface_hub import snapshot_download

    repo, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True)).name
    except Exception:  # not in the hub's cache, or a cache this version of the hub cannot read
        return ""
