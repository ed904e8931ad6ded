"""The gallery: real pages, of what was measured, that open without a network."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from lwlab import catalog, notebook, workshop
from lwlab.errors import BadInput, RunError
from lwlab.gallery import build
from lwlab.gallery.links import broken
from lwlab.runs import execute, registry


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"), execute=False).index.parent


def test_every_technique_has_a_page_with_its_pictures_and_the_atlas_names_every_paper(
    site: Path,
) -> None:
    front = (site / "index.html").read_text()
    for t in registry.techniques():
        h = t.header
        page = (site / h.family / f"{h.id}.html").read_text()
        assert not h.paper or f"arxiv.org/abs/{h.paper}" in page
        assert "Claims by model" in page, h.id
        assert re.search(r"<img[^>]+\.png", page), h.id
        assert f"href='{h.family}/{h.id}.html'" in front
    for paper in catalog.papers():
        assert f">{paper.id}<" in front, paper.id


def test_the_workshop_has_its_page_and_the_instructor_the_answers(site: Path) -> None:
    steps = workshop.steps()
    assert steps[1].header.id in (site / "workshop.html").read_text()
    instructor = (site / "instructor.html").read_text()
    assert instructor.count("Answer 1") >= len(steps) - 1


def test_nothing_is_asked_of_a_network_and_no_link_is_dead(site: Path) -> None:
    assert broken(site) == []
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)[^>]*>", page.read_text()):
            assert not re.search(r"(?:src|href)=.(?:https?:)?//", tag), (page.name, tag)


@pytest.mark.parametrize(
    "link",
    ["<a href='gone.html'>", "<a href='#gone'>", "<img src='gone.png'>", "<a href='../../up.html'>",
     "<script src='https://cdn.example.org/x.js'></script>", "<a href='https://:80'>"],
)  # fmt: skip
def test_a_dead_link_is_found(tmp_path: Path, link: str) -> None:
    (tmp_path / "page.html").write_text("<p id='here'><a href='#here'>x</a>")
    assert broken(tmp_path) == []
    (tmp_path / "other.html").write_text(f"<a href='page.html#here'>x</a>{link}")
    (dead,) = broken(tmp_path)
    assert dead.startswith("other.html: ")


def test_a_stale_notebook_is_executed_and_other_models_stand_beside_it(
    shelf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "site"
    first = build(out)
    assert first.executed == ("toy-one",)
    page = out / "depth" / "toy-one.html"
    text = page.read_text()
    assert "<mfrac>" in text, "equations are MathML"
    assert 'href="../index.html"' in text, "the link to the door leads to the front page"
    assert "not measured" not in text

    notebook.build(shelf)
    assert build(out).executed == (), "a fresh pair is shown as it is"
    execute("toy-one", {"model": "other", "n": 2}, html=False)
    (shown,) = build(out).pages
    # the stale run of the first build is in the runs too: one column a model, the pair's own first
    assert list(shown.claims) == ["tiny", "other"]
    text = page.read_text()
    assert "<td class='reproduced'>reproduced<br><small>3</small></td>" in text
    assert "<td class='not-reproduced'>not reproduced<br><small>2</small></td>" in text

    shelf.write_text(shelf.read_text() + "\n# %%\nn + 1\n")
    (unrun,) = build(out, execute=False).pages
    assert unrun.stale
    assert "changed after it was executed" in page.read_text()


def test_a_stale_notebook_that_fails_leaves_the_earlier_site(shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    notebook.build(shelf)
    build(out)
    before = (out / "index.html").read_bytes()
    shelf.write_text(shelf.read_text() + "\n# %%\n1 / 0\n")
    with pytest.raises(RunError, match="ZeroDivisionError"):
        build(out)
    assert (out / "index.html").read_bytes() == before
    assert [p.name for p in out.parent.iterdir() if "site" in p.name] == ["site"]


def test_what_is_not_a_gallery_is_not_replaced(shelf: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    with pytest.raises(BadInput, match="not a gallery"):
        build(thesis)
    assert (thesis / "chapter.tex").exists()
    with pytest.raises(BadInput, match="no folder"):
        build(tmp_path / "new", [tmp_path / "nowhere"])
    assert not (Path.cwd() / "lwlab-runs").exists(), "refused before anything was executed"


def test_without_sphinx_it_says_what_to_install(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *a: Any) -> Any:
        return None if name == "myst_nb" else real(name, *a)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(BadInput, match=r"myst_nb.*lwlab\[gallery\]"):
        build()
