"""What every instrument shares: visible errors, a static twin, front-end files of its own."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets as t

from lwlab.errors import LwlabError

_STATIC = Path(__file__).parent / "static"


def static_file(name: str) -> Path:
    """Return the path of a front-end file, e.g. "heatmap.js"; anywidget reads it when needed."""
    return _STATIC / name


def front_end(*names: str) -> tuple[str, str]:
    """Return an instrument's module and style sheet: `common`, then each NAME's .js and .css.

    One text each, because a module loaded from a notebook cannot import its neighbours. A part may
    lack its style sheet; the last module exports `render`.
    """
    files = [
        [static_file(f"{part}.{kind}") for part in ("common", *names)] for kind in ("js", "css")
    ]
    module, style = (
        "\n".join(f.read_text("utf-8") for f in kind if f.suffix == ".js" or f.exists())
        for kind in files
    )
    return module, style


def said(error: Exception) -> str:
    """Return what a user is told: lwlab's own errors in their words, others with their kind."""
    return str(error) if isinstance(error, LwlabError) else f"{type(error).__name__}: {error}"


class LabWidget(anywidget.AnyWidget):
    """A widget whose mistakes are seen and whose saved form is a picture and a sentence.

    A notebook shows neither prints nor exceptions of widget callbacks, so each callback runs
    through `guard`, which puts the exception into `error`; every front end shows `error` with
    role="alert". The whole traceback is kept in `failure` for whoever asks.

    Subclasses give `static_text()` and `static_png()`: what a reader sees where no kernel runs
    (a code host, an untrusted notebook, nbconvert). Widget state itself is never saved.
    """

    title = t.Unicode("").tag(sync=True)
    subtitle = t.Unicode("").tag(sync=True)
    error = t.Unicode("").tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self.failure = ""
        super().__init__(**traits)

    def guard(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return `call(*args)`; an exception becomes the visible `error`, and None is returned."""
        try:
            answer = call(*args)
        except Exception as e:
            self.failure = traceback.format_exc()
            self.error = said(e)
            return None
        self.failure = self.error = ""
        return answer

    def static_text(self) -> str:
        """Return the widget's finding as a sentence."""
        raise NotImplementedError

    def static_png(self) -> bytes:
        """Return the widget's picture as PNG."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        # No text/html: code hosts strip its colours and would still prefer it to the PNG.
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = self.static_text()
        data["image/png"] = base64.b64encode(self.static_png()).decode()
        return data, meta
