"""What a fresh clone installs and builds agrees with itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDS = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}


def _environment(path: str) -> tuple[dict[str, Requirement], list[str]]:
    spec = yaml.safe_load((ROOT / path).read_text())
    assert spec["channels"] == ["conda-forge", "nodefaults"]
    plain = [
        re.sub(r"(?<![<>=])=(?!=)", "==", d) for d in spec["dependencies"] if isinstance(d, str)
    ]
    pip = [d["pip"] for d in spec["dependencies"] if isinstance(d, dict)]
    return {r.name: r for r in map(Requirement, plain)}, pip[0] if pip else []


def test_conda_environments_agree_with_pyproject() -> None:
    root, pip = _environment("environment.yml")
    binder, nothing = _environment("binder/environment.yml")
    assert root == binder
    assert nothing == []
    assert pip == ["-e .[lab]"]
    version = str(next(iter(root["python"].specifier)).version)
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.9")
    assert root["pytorch"].specifier == NEEDS["torch"].specifier


def test_the_constraint_is_inside_the_declared_range() -> None:
    pinned = Requirement((ROOT / "constraints.txt").read_text().strip())
    (version,) = pinned.specifier
    assert NEEDS[pinned.name].specifier.contains(version.version)


def test_binder_scripts_run_and_name_what_exists() -> None:
    for script in ("postBuild", "start"):
        path = ROOT / "binder" / script
        assert path.stat().st_mode & 0o111, f"{script} is not executable"
        subprocess.run(["bash", "-n", str(path)], check=True)
    text = (ROOT / "binder/postBuild").read_text()
    assert "lwlab fetch smollm2-135m" in text
    for name in re.findall(r"cp (\S+)", text):
        assert (ROOT / name).is_file()


def test_version_is_said_once() -> None:
    import lwlab

    assert lwlab.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text()


OURS = {"lwlab", "lwlab_widgets", "lwlab_kernels"}


@pytest.mark.slow
def test_the_wheel_holds_notebooks_scripts_and_types(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("lwlab-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "lwlab/py.typed",
        "lwlab/data/catalog.json",
        "lwlab/_notebooks/index.ipynb",
        "lwlab/_notebooks/attribution/relp.ipynb",
        "lwlab_widgets/py.typed",
        "lwlab_widgets/static/heatmap.js",
        "lwlab_kernels/py.typed",
    ):
        assert needed in names, f"{needed} is not in the wheel"
    strays = {n.split("/")[0] for n in names} - OURS
    assert all(s.endswith(".dist-info") for s in strays), strays


# triton comes with CUDA builds of PyTorch (no GPU to use it on otherwise), docutils with Sphinx
OPTIONAL = {
    "datasets", "zarr", "jupyterlab", "jupyter_client", "IPython", "traitlets", "triton",
    "docutils",
}  # fmt: skip


def test_what_is_imported_is_declared() -> None:
    declared = {n.lower().replace("_", "-") for n in NEEDS}
    where = packages_distributions()
    for path in (p for d in ("lwlab", "widgets", "kernels") for p in (ROOT / d).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for top in {n.split(".")[0] for n in names} - OPTIONAL - OURS:
                if top in sys.stdlib_module_names:
                    continue
                owners = {d.lower().replace("_", "-") for d in where.get(top, [top])}
                assert owners & declared, (
                    f"{path.relative_to(ROOT)} imports {top}: declare {owners}"
                )
