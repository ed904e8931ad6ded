from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lwlab.errors import BadInput, UnknownName
from lwlab.notebook import load, parameters, problems, read_header
from lwlab.runs import registry
from lwlab.runs.scaffold import scaffold


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    for name in ("lwlab/depth", "notebooks", "tests"):
        (root / name).mkdir(parents=True)
    (root / "lwlab/depth/__init__.py").write_text('"""Depth."""\n')
    return root


def test_the_homes_of_a_technique_share_one_name(root: Path) -> None:
    started = scaffold("depth/llm-drop", root=root)
    assert [str(p.relative_to(root)) for p in started.paths] == [
        "lwlab/depth/llm_drop.py",
        "notebooks/depth/llm_drop.py",
        "tests/depth/test_llm_drop.py",
    ]
    assert "papers/cards/llm-drop.md" in started.steps[0]
    assert started.steps[-1].endswith("lwlab notebooks build llm-drop")


def test_title_and_preprint_come_from_the_catalogue(root: Path) -> None:
    scaffold("depth/llm-drop", root=root)
    header = read_header(root / "notebooks/depth/llm_drop.py")
    assert header.title == "What Matters in Transformers? Not All Attention is Needed"
    assert header.paper == "2406.15786"
    assert (header.id, header.family) == ("llm-drop", "depth")


def test_a_new_notebook_has_every_part_and_is_not_yet_fit(root: Path) -> None:
    scaffold("depth/llm-drop", root=root)
    py = root / "notebooks/depth/llm_drop.py"
    declared = parameters(load(py))
    assert declared is not None
    assert [p.name for p in declared] == ["model", "profile", "n", "seed"]
    headings = [line for line in py.read_text().splitlines() if line.startswith("# ## ")]
    assert len(headings) == 6
    assert "$$ y = f(x) $$" in py.read_text()
    assert problems(py) == ["llm_drop.ipynb: not built; run `lwlab notebooks build llm-drop`"]


def test_a_new_family_gets_its_package_and_the_step_that_lists_it(root: Path) -> None:
    started = scaffold("beyond/wings-of-mine", title="Mine", arxiv="2601.00001", root=root)
    assert (root / "lwlab/beyond/__init__.py").read_text() == '"""Beyond."""\n'
    assert any("Add 'beyond' to the modules" in step for step in started.steps)
    assert "(arXiv:2601.00001)" in (root / "lwlab/beyond/wings_of_mine.py").read_text()


def test_an_unsure_preprint_is_pointed_out(root: Path) -> None:
    assert any("arXiv number" in s for s in scaffold("merging/mobiletl", root=root).steps)


def test_nothing_is_overwritten_or_half_written(root: Path) -> None:
    mine = root / "tests/depth/test_llm_drop.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(BadInput, match=r"tests/depth/test_llm_drop\.py exists already; nothing"):
        scaffold("depth/llm-drop", root=root)
    assert mine.read_text() == "mine"
    assert not (root / "lwlab/depth/llm_drop.py").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("depths/llm-drop", UnknownName, "did you mean 'depth'.*steering"),
        ("attribution/llm-drop", BadInput, "`lwlab new depth/llm-drop`"),
        ("depth/llm-dorp", UnknownName, "did you mean 'llm-drop'.*give --title"),
        ("llm-drop", BadInput, "is not family/id"),
        ("depth/LLM_drop", BadInput, "is not family/id"),
        ("depth/../x", BadInput, "is not family/id"),
        ("depth/1x", BadInput, "is not family/id"),
    ],
)
def test_a_name_that_cannot_work_is_refused(
    root: Path, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scaffold(name, root=root)


def test_an_installed_package_cannot_be_scaffolded_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lwlab.runs.registry.checkout", lambda: None)
    with pytest.raises(BadInput, match="not imported from a checkout"):
        scaffold("depth/llm-drop")


def test_what_is_written_passes_the_linters_of_this_repository(root: Path) -> None:
    started = scaffold("depth/llm-drop", root=root)
    for path in started.paths:
        ast.parse(path.read_text())
    home = registry.checkout()
    assert home is not None
    (root / "pyproject.toml").write_text((home / "pyproject.toml").read_text())
    (root / "lwlab" / "__init__.py").write_text("")
    (root / "lwlab" / "models").mkdir()
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *command, *map(str, started.paths)], cwd=root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_its_tests_fail_until_the_technique_is_written(root: Path) -> None:
    scaffold("depth/wings-of-mine", title="Mine", arxiv="2601.00001", root=root)
    code = (
        "import sys, pytest, lwlab.depth;"
        f"lwlab.depth.__path__.append({str(root / 'lwlab/depth')!r});"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/depth']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "3 failed" in done.stdout, done.stdout + done.stderr
    assert "NotImplementedError: wings-of-mine is not written yet" in done.stdout
