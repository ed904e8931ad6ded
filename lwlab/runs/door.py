"""What the index notebook shows: the notebooks at hand, their claims, and a way to run each."""

from __future__ import annotations

import threading
from typing import Any

from lwlab.claims import ClaimTable, read_claims
from lwlab.errors import LwlabError
from lwlab.runs import registry
from lwlab.runs.run import execute


def contents() -> str:
    """Return the table of notebooks as Markdown: link, what it shows, paper, cost."""
    rows = ["| open | what it shows | paper | quick run |", "|---|---|---|---|"]
    for t in registry.techniques():
        h = t.header
        link = f"[{h.family}/{h.id}]({t.notebook.relative_to(registry.notebooks_dir())})"
        paper = f"[arXiv:{h.paper}](https://arxiv.org/abs/{h.paper})" if h.paper else ""
        rows.append(f"| {link} | {h.title} | {paper} | {h.seconds:.0f} s, {h.memory_mb:.0f} MB |")
    return "\n".join(rows)


def verdicts() -> str:
    """Return one line a notebook as Markdown: how many claims hold, were reproduced, or not.

    Every claim with its number is in the notebook, in `lwlab report` and in `lw.widgets.ledger()`.
    """
    kinds = ("holds", "reproduced", "not reproduced")
    rows = [
        "| notebook | exact: hold | papers': reproduced | not reproduced |",
        "|---|---|---|---|",
    ]
    for t in registry.techniques():
        if not t.notebook.exists():
            continue
        found = [c["verdict"] for c in read_claims(t.notebook)]
        if found:
            rows.append(
                f"| {t.header.id} | " + " | ".join(str(found.count(k)) for k in kinds) + " |"
            )
    return "\n".join(rows)


def launcher() -> Any:
    """Return a panel that runs a notebook in a kernel of its own and shows its claims.

    The run goes on in a thread, so the index stays usable; a second click while it runs is ignored.
    """
    import ipywidgets as w

    ids = [t.header.id for t in registry.techniques()]
    which = w.Dropdown(options=ids, description="notebook")
    model = w.Text(value="smollm2-135m", description="model")
    profile = w.ToggleButtons(options=["quick", "full"], description="profile")
    button = w.Button(description="Run", button_style="primary", icon="play")
    status = w.HTML("<i>A quick run takes under a minute on a laptop.</i>")
    claims = w.Output()

    def show(cell: int, cells: int, section: str) -> None:
        status.value = f"cell {cell + 1} of {cells}: {section}"

    def work() -> None:
        claims.outputs = ()
        try:
            params = {"model": model.value, "profile": profile.value}
            done = execute(which.value, params, progress=show)
            status.value = f"done in {done.seconds:.0f} s: <code>{done.notebook}</code>"
            claims.append_display_data(ClaimTable(done.claims))
        except LwlabError as e:
            status.value = ""
            claims.append_stderr(str(e))
        finally:
            button.disabled = False

    def start(_: Any) -> None:
        button.disabled = True
        status.value = "starting a kernel ..."
        threading.Thread(target=work, daemon=True).start()

    button.on_click(start)
    return w.VBox([w.HBox([which, model]), profile, w.HBox([button, status]), claims])
