"""The documents' own code runs, and what they name exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_readme_code_runs_on_the_real_model(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import lwlab as lw
    from lwlab.models import far

    def load(name: str, remote: Any = False) -> Any:
        model = {"smollm2-135m": smollm2}[name]
        return far.packed(model) if remote else model

    monkeypatch.setattr(lw, "load", load)
    scope: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(code, scope)
    assert scope["ends"].resid_post.shape == (1, 2, 1, smollm2.d_model)
    assert set(scope["streams"].data_vars) == {"resid_pre", "attn_out"}
    assert float(scope["without"].moved.max()) > 0
    assert scope["text"].text.item().startswith(" Paris")


def test_readme_names_every_site_it_lists() -> None:
    from lwlab.models import SITES

    table = re.search(r"\| site \|.*?\n\n", README, re.S)
    assert table is not None
    named = set(re.findall(r"^\| (.*?) \|", table.group(0), re.M)) - {"site", "---"}
    sites = {s for cell in named for s in re.findall(r"`(\w+)`", cell)}
    assert sites <= set(SITES)


def test_links_between_documents_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{document} links to {target}"


def test_commands_in_the_readme_exist() -> None:
    from lwlab.cli import app

    known = {
        c.name or c.callback.__name__.rstrip("_") for c in app.registered_commands if c.callback
    }
    known |= {g.name for g in app.registered_groups}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)
    fenced = "\n".join(text for language, text in blocks if not language)
    inline = re.findall(r"`lwlab (\w+)", README)
    for command in re.findall(r"^lwlab (\w+)", fenced, re.M) + inline:
        assert command in known, f"README names `lwlab {command}`"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)`?", README):
        assert re.search(rf"^{target}:", makefile, re.M), f"README names `make {target}`"
