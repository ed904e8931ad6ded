from __future__ import annotations

from pathlib import Path

import pytest
from toybooks import Toy

from lwlab import catalog
from lwlab.errors import BadInput, UnknownName
from lwlab.runs import registry


def test_the_catalogue_holds_every_paper_once() -> None:
    papers = catalog.papers()
    assert len(papers) == len({p.id for p in papers}) == 205
    assert all(p.title and p.family for p in papers)
    assert all(p.id == p.id.lower() and "_" not in p.id for p in papers)
    assert len(catalog.families()) == 12


def test_a_paper_is_found_by_either_spelling() -> None:
    for id in ("depth-efficiency", "depth_efficiency", " Depth-Efficiency "):
        paper = catalog.find(id)
        assert (paper.family, paper.arxiv, paper.verified) == ("depth", "2505.13898", True)
    assert paper.url == "https://arxiv.org/abs/2505.13898"


def test_an_unknown_paper_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'depth-efficiency'"):
        catalog.find("depth-eficiency")


def test_some_preprints_are_unsure_or_unknown() -> None:
    assert not catalog.find("mobiletl").verified
    assert {p.id for p in catalog.papers() if not p.url} >= {"aurora-decoders"}


def test_techniques_are_the_notebooks_with_a_header(toy: Toy) -> None:
    folder = toy(id="b-second").parents[1]
    toy(id="a-first")
    door = "# ---\n# jupyter:\n#   lwlab: {id: index, title: The door}\n# ---\n"
    (folder / "index.py").write_text(door)
    assert [t.header.id for t in registry.techniques(folder)] == ["a-first", "b-second"]
    assert [p.name for p in registry.sources(folder)] == ["index.py", "a_first.py", "b_second.py"]
    found = registry.find("depth/B_second", folder)
    assert found.notebook == folder / "depth" / "b_second.ipynb"
    assert registry.find("index", folder).header.title == "The door"


def test_a_technique_of_the_catalogue_without_notebook_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="`lwlab new depth/llm-drop` starts one"):
        registry.find("llm_drop", tmp_path)


def test_an_unknown_technique_is_refused_with_the_nearest(toy: Toy) -> None:
    folder = toy(id="relp").parents[1]
    with pytest.raises(UnknownName, match="no technique is called 'relpp'; did you mean 'relp'"):
        registry.find("relpp", folder)


def test_a_notebook_with_a_bad_header_is_named(toy: Toy) -> None:
    folder = toy("1", header="").parents[1]
    with pytest.raises(BadInput, match=r"toy\.py: no `lwlab:`"):
        registry.techniques(folder)


def test_the_notebooks_of_this_checkout_are_found() -> None:
    root = registry.checkout()
    assert root is not None
    assert (root / "lwlab" / "errors.py").is_file()
    assert registry.notebooks_dir() == root / "notebooks"


def test_an_installed_package_uses_the_notebooks_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lwlab.__file__", str(tmp_path / "site-packages" / "lwlab" / "__init__.py"))
    assert registry.checkout() is None
    assert registry.notebooks_dir() == tmp_path / "site-packages" / "lwlab" / "_notebooks"
