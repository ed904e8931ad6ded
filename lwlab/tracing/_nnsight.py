"""The only place that imports nnsight: import guard, version gate, locks.

Why a guard: nnsight mounts `.save` on `object`, after which anyio's typed-attribute classes, when
they are imported for the first time, refuse to be defined, and with them httpx and FastAPI.
Importing those classes first avoids it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from lwlab.errors import BadInput, LwlabError
from lwlab.tracing import _sources

if TYPE_CHECKING:
    from lwlab.models.model import Model

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_GUARD = threading.Lock()
_ANYIO = ("anyio._backends._asyncio", "anyio.streams.tls", "anyio.streams.file", "anyio.abc")


@cache
def nnsight() -> Any:
    """Import nnsight once, safely; raise LwlabError for a version this code was not tested with."""
    found = version("nnsight")
    if not re.match(r"0\.8\.[1-9]", found):
        raise LwlabError(
            f"nnsight {found} does not work with lwlab: pip install 'nnsight>=0.8.1,<0.9'"
        )
    with _unmounted():
        _load_anyio()
    module = importlib.import_module("nnsight")
    _sources.install()
    return module


def _load_anyio() -> None:
    for name in _ANYIO:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError, AttributeError):
        # anyio.abc is lazy: this attribute is the class whose late definition would fail.
        importlib.import_module("anyio.abc").SocketAttribute  # noqa: B018


@contextlib.contextmanager
def _unmounted() -> Iterator[None]:
    """Without nnsight's `.save` on every object, where somebody imported nnsight before us."""
    loaded = sys.modules.get("nnsight")
    if loaded is None or not hasattr(object, "save"):
        yield
        return
    mounts = importlib.import_module("nnsight._c")
    mounts.unmount("save")
    try:
        yield
    finally:
        mounts.mount(loaded.save, "save")


def wrap(module: nn.Module, tokenizer: Any = None) -> Any:
    """Return the nnsight model over `module`: TransformersModel where it has a config."""
    ns = nnsight()
    with lock(module), warnings.catch_warnings():
        # BERT's submodule called `output`: `envoy` below knows where nnsight puts it.
        warnings.filterwarnings("ignore", message=".*which nnsight already serves.*")
        if tokenizer is None or not hasattr(module, "config"):
            return ns.NNsight(module)
        # Left to itself it knows no task for a bare encoder, and wants masked text for a masked LM.
        generates = getattr(module, "can_generate", bool)()
        generates &= not getattr(module.config, "is_encoder_decoder", False)
        task = "text-generation" if generates else "feature-extraction"
        return ns.TransformersModel(module, tokenizer=tokenizer, task=task)


def skeleton(repo: str, revision: str | None, tokenizer: Any, task: str, dtype: Any) -> Any:
    """Return nnsight's model over modules without weights, which a server knows as `repo`."""
    ns = nnsight()
    if Path(repo).is_dir():  # of an id nnsight asks the hub how it is spelt
        importlib.import_module("nnsight.modeling.huggingface")._ID_CACHE[repo] = repo
    return ns.TransformersModel(
        repo, revision=revision, tokenizer=tokenizer, task=task, dtype=dtype, dispatch=False
    )


def envoy(nn_: Any, path: str) -> Any:
    """Return the envoy of the module at `path` (the root for "").

    nnsight moves a submodule whose name it serves itself (BERT's `output`) to `E_<name>`.
    """
    here = nn_
    for part in path.split(".") if path else ():
        here = getattr(here, f"E_{part}" if f"E_{part}" in vars(here) else part)
    return here


def refuse_nested(what: str) -> None:
    """Raise BadInput inside a running trace, where the model cannot be run again."""
    worker = importlib.import_module("greenlet").getcurrent()
    if getattr(worker, "mediator", None) is not None:
        raise BadInput(
            f"{what} was called inside a trace or an edit function: run it before, and use its "
            "result there"
        )


def lock(model: Model | nn.Module) -> threading.RLock:
    """Return the one re-entrant lock of a torch module.

    nnsight's interleaving is not thread-safe, and two wrappers over one module share its state, so
    the lock belongs to the module. Hold it around plain forwards too. For those a Model is given:
    BadInput where it runs remotely, because its weights are not here.
    """
    module = model if isinstance(model, nn.Module) else model.module
    if not isinstance(model, nn.Module) and model.remote:
        raise BadInput(
            f"{model.name} was loaded with remote={model.remote!r}: this needs the weights here. "
            "Remote models run lw.cache, patch, ablate, grads, chain and generate; lw.load it "
            "without remote= for the rest"
        )
    with _GUARD:
        if module not in _LOCKS:
            _LOCKS[module] = threading.RLock()
        return _LOCKS[module]
