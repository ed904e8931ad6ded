"""A notebook as one HTML file that needs no network: pictures inside, equations as MathML."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lwlab._quick import quick_imports
from lwlab.notebook import freeze
from lwlab.paths import write_atomic

# nbconvert's page without its links to script hosts (require.js, MathJax, Mermaid, widgets).
_TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock html_head_js -%}
{%- block jupyter_widgets -%}{%- endblock jupyter_widgets -%}
{%- block html_head_js_mathjax -%}{%- endblock html_head_js_mathjax -%}
{%- block html_head_js_mermaidjs -%}{%- endblock html_head_js_mermaidjs -%}
{%- block html_head_css -%}
<style>.jp-Notebook main, main { max-width: 1000px; margin: 0 auto; }</style>
{%- endblock html_head_css -%}
"""


def write_html(nb: Any, path: Path, title: str) -> Path:
    """Write an executed notebook (an nbformat node, left as it is) as a page for `file://`."""
    quick_imports()
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class MathML(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    class Offline(HTMLExporter):
        def markdown2html(self, context: Any, source: str) -> Any:
            cell = context.get("cell", {})
            renderer = MathML(escape=False, attachments=cell.get("attachments", {}))
            return MarkdownWithMath(renderer=renderer).render(source)

        markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg  # type: ignore[attr-defined]

    page = freeze(copy.deepcopy(nb))
    page.metadata["title"] = title
    exporter = Offline(raw_template=_TEMPLATE)
    body, _ = exporter.from_notebook_node(page)
    write_atomic(path, body)
    return path


def mathml(latex: str, display: str) -> str:
    """Return an equation as MathML, or its LaTeX in a code element if it cannot be converted."""
    from html import escape

    try:
        from latex2mathml.converter import convert

        # the converter knows align but not aligned, which authors use inside $$
        return convert(latex.strip().replace("{aligned}", "{align}"), display=display)
    except Exception:
        tag = "pre" if display == "block" else "code"
        return f"<{tag}>{escape(latex.strip())}</{tag}>"
