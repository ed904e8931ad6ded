"""A Sphinx extension: equations as MathML, which browsers draw without a script or a network."""

from __future__ import annotations

from typing import Any

from lwlab import __version__
from lwlab.runs.html import mathml


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer `mathml` with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: Any) -> None:
    _write(translator, mathml(node.astext(), "inline"))


def _block(translator: Any, node: Any) -> None:
    _write(translator, f"<div class='math'>{mathml(node.astext(), 'block')}</div>\n")


def _write(translator: Any, html: str) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(html)
    raise SkipNode
