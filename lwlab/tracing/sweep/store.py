"""Sweeps that go on where they stopped: results on disk under a key of what was asked."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.errors import BadInput
from lwlab.tracing.sweep.request import Request

_SECONDS = 2.0
Arrays = dict[str, NDArray[np.float64]]


def key_of(request: Request) -> str:
    """Digest of model, prompts, answers and arguments: equal for the same sweep and no other."""
    r, p = request, request.prompts
    h = hashlib.sha256()
    wanted = (r.model.name, r.model.checksum, r.model.rules, r.task.name, r.edit_name, r.into)
    about = [*map(str, wanted), r.seed, r.scale, r.layers, p.names]
    about += [[s.site, s.units, len(s.parts)] for s in r.specs]
    h.update(json.dumps(about, default=str).encode())
    for t in (p.tokens, p.donors):
        if t is not None:
            h.update(np.ascontiguousarray(t.ids.cpu().numpy()).tobytes())
            h.update(np.ascontiguousarray(t.mask.cpu().numpy()).tobytes())
    h.update(p.wanted.tobytes())
    if not r.model.checksum:  # a module of the user's own: its weights are its identity
        for parameter in r.model.module.parameters():
            h.update(repr(float(parameter.detach().double().sum())).encode())
    h.update(str(getattr(r.task, "measure", "")).encode())
    for name in ("answer_sets", "foil_sets"):
        table = getattr(r.task, name, None)
        if isinstance(table, torch.Tensor):
            h.update(table.cpu().numpy().tobytes())
    if r.reference is not None:
        h.update(repr(r.reference).encode())
    code = getattr(r.edit, "__code__", None)
    if code is not None:
        h.update(code.co_code + repr(code.co_consts).encode())
    return h.hexdigest()


class Store:
    """Metrics of the cells that are done, in memory and, with a path, on disk."""

    def __init__(self, request: Request, path: str | os.PathLike[str] | None) -> None:
        """Start empty, or from what an interrupted sweep of the same arguments left at `path`."""
        self.values: Arrays = {s.site: np.full(request.shape(s), np.nan) for s in request.specs}
        self.path = None if path is None else Path(path)
        self.key = key_of(request) if self.path is not None else ""
        self.saved = time.monotonic()
        if self.path is None or not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as held:
                data = {k: held[k] for k in held.files}
            key = str(data.pop("key"))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise BadInput(f"resume={str(self.path)!r} is not a sweep's file: {error}") from error
        if key != self.key:
            raise BadInput(
                f"resume={str(self.path)!r} holds another sweep (another model, task or argument): "
                "name another file, or delete it"
            )
        self.values = {site: data[site] for site in self.values}

    def save(self, now: bool = False) -> None:
        """Write to disk, every few seconds or `now`; at every moment the file is whole."""
        if self.path is None or (not now and time.monotonic() < self.saved + _SECONDS):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                arrays: dict[str, Any] = dict(self.values)
                np.savez(file, key=np.array(self.key), **arrays)
            os.replace(name, self.path)
            self.saved = time.monotonic()
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
