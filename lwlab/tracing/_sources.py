"""Which source nnsight compiles traces from: the text of the code that runs, not an older one.

nnsight reads a file once, and looks a compiled `with` block up by file, line and function name.
When a module is loaded anew (`%autoreload`, `importlib.reload`), a script is run again by `%run`,
or two texts are executed under one file name, it would silently run the block of the code before.
"""

from __future__ import annotations

import contextlib
import importlib
import linecache
import os
import sys
from types import CodeType, FrameType
from typing import Any

_OWN = __name__.rpartition(".")[0]
_INSTALLED: list[Blocks] = []


class Blocks(dict[Any, Any]):
    """nnsight's table of compiled blocks, held by the code they are part of as well.

    `sources` is nnsight's table of texts. A file that belongs to a module is read when code of
    that module is first traced and again when the module was loaded anew: never only because it
    changed on disk, since the code that runs did not.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        super().__init__()
        self.sources = sources
        self.specs: dict[str, Any] = {}
        self.seen: set[Any] = set()

    def __contains__(self, key: object) -> bool:
        frame = _captured()
        found = super().__contains__((key, _code(frame)))
        if not found and frame is not None:
            self._check(key, frame)
        return found

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__((key, _code(_captured())))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__((key, _code(_captured())), value)

    def _check(self, key: Any, frame: FrameType) -> None:
        """Before a block is compiled: have the text that its code was made of."""
        name = frame.f_code.co_filename
        spec = frame.f_globals.get("__spec__")
        spec = spec if getattr(spec, "origin", None) == name else None
        anew = self.specs.get(name, self) is not spec
        if anew or key in self.seen or not os.path.isfile(name):
            self.refresh(name)
        self.specs[name] = spec
        self.seen.add(key)

    def refresh(self, name: str) -> None:
        """Read a file (or what is registered in linecache under its name) again."""
        linecache.checkcache(name)
        if text := "".join(linecache.getlines(name)):
            self.sources[name] = text

    def forget(self, filename: str | None = None) -> None:
        """Have `filename` read again before the next new block of it; see `forget` below."""
        for name, spec in list(self.specs.items()):
            if name == filename or (filename is None and spec is None):
                del self.specs[name]

    def pin(self, package: str) -> None:
        """Keep the text of a package's modules as they are loaded now."""
        for module in list(sys.modules.values()):
            spec: Any = getattr(module, "__spec__", None)
            name = getattr(spec, "origin", None)
            if name and spec.name.startswith(f"{package}."):
                self.specs[name] = spec
                self.refresh(name)


def _captured() -> FrameType | None:
    """The user's frame: a local variable of nnsight's `Tracer.capture`, which called the table."""
    frame = sys._getframe(2).f_locals.get("frame")
    return frame if isinstance(frame, FrameType) else None


def _code(frame: FrameType | None) -> CodeType | None:
    return None if frame is None else frame.f_code


def install() -> None:
    """Put the table in nnsight's place for it, and follow the cells of a notebook."""
    tables: Any = importlib.import_module("nnsight.tracing.globals")
    tracer: Any = importlib.import_module("nnsight.tracing.tracer")
    blocks = Blocks(tables.SOURCES)
    blocks.pin(_OWN)
    tables.BLOCKS = tracer.BLOCKS = blocks
    _INSTALLED[:] = [blocks]
    _watch_notebook(blocks)


def forget(filename: str | None = None) -> None:
    """Read the source of `filename` again before the next new trace in it.

    For code executed under a file's name that is no import of it. Without a name: all cells and
    scripts. Modules that were loaded anew are noticed by themselves.
    """
    for blocks in _INSTALLED:
        blocks.forget(filename)


def _watch_notebook(blocks: Blocks) -> None:
    try:
        shell = importlib.import_module("IPython").get_ipython()
    except ImportError:
        return
    if shell is None:
        return

    def before(*_: Any) -> None:
        blocks.forget()
        _reload_whole(shell)

    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", lambda *_: _reload_whole(shell))


def _reload_whole(shell: Any) -> None:
    """Make `%autoreload` load changed modules as `%autoreload 2 --full` does.

    Its other way compiles single functions from snippets that are in no file, in which nnsight
    cannot find a `with` block.
    """
    autoreload = shell.magics_manager.registry.get("AutoreloadMagics")
    with contextlib.suppress(AttributeError):  # IPython before 9 knows only the one way
        autoreload._reloader.deduper_reloader.enabled = False
