"""Will a model fit? Asked before its weights are read, and answered with numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from lwlab.errors import BadInput

#: What loading and one short forward pass take beside the weights themselves.
OVERHEAD = 1.15


def weights(folder: Path) -> int:
    """Number of weights in the safetensors files of `folder`, from their headers alone."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        total += sum(math.prod(t["shape"]) for k, t in header.items() if k != "__metadata__")
    return total


def available(device: str | torch.device | None, device_map: Any = None) -> dict[str, float]:
    """Free bytes by place: GPUs (all of them with a device map), and the memory of the machine."""
    import psutil  # type: ignore[import-untyped]

    free = {"memory": float(psutil.virtual_memory().available)}
    kind = torch.device(device).type if device is not None else "cpu"
    if torch.cuda.is_available() and (kind == "cuda" or device_map is not None):
        chosen = list(range(torch.cuda.device_count()))
        if device_map is None:
            chosen = [torch.device(device or "cuda").index or 0]
        gpus = {f"cuda:{i}": float(torch.cuda.mem_get_info(i)[0]) for i in chosen}
        return {**gpus, **free} if device_map is not None else gpus
    return free


def check(local: Any, dtype: torch.dtype, device: Any = None, device_map: Any = None) -> None:
    """Raise BadInput with the numbers where the weights of a fetched model cannot fit.

    Needed: weights x bytes of `dtype` x 1.15. There is: what is free on the device, or, with
    `device_map`, on all GPUs and in memory together (what is left over goes to the disk, if the
    map says so).
    """
    folder = Path(local.path)
    if device_map not in (None, "auto") or not folder.is_dir():
        return  # the user has said where everything goes
    count = weights(folder)
    need, have = count * dtype.itemsize * OVERHEAD, available(device, device_map)
    if need <= sum(have.values()):
        return
    places = " + ".join(f"{v / 1e9:.1f} GB of {k}" for k, v in have.items())
    advice = []
    if dtype.itemsize > 2:
        half = count * 2 * OVERHEAD / 1e9
        advice.append(f"dtype=torch.bfloat16 needs {half:.1f} GB")
    if device_map is None:
        advice.append('device_map="auto" spreads it over GPUs, memory and disk')
    advice.append("remote=True runs it on a server")
    raise BadInput(
        f"{local.name} has {count / 1e9:.2f} billion weights and needs {need / 1e9:.1f} GB in "
        f"{str(dtype).removeprefix('torch.')}; there are {places} free. {'; '.join(advice)}"
    )
