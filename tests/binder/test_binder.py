"""What Binder would do, as far as it can be done without Docker: its own dry run, our scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_repo2docker_reads_binder_and_plans_our_scripts() -> None:
    tool = Path(sys.executable).with_name("jupyter-repo2docker")
    assert tool.exists(), "jupyter-repo2docker belongs to the test extra"
    done = subprocess.run(
        [str(tool), "--no-build", "--debug", "."],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    python = yaml.safe_load((ROOT / "binder/environment.yml").read_text())["dependencies"][0]
    assert f"Building conda environment for {python}" in said
    assert '--file "binder/environment.yml"' in said
    assert "RUN ./binder/postBuild" in said
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in said


@pytest.mark.parametrize("name", ["environment.yml", "binder/environment.yml"])
def test_a_conda_solver_understands_every_line(name: str) -> None:
    from rattler import MatchSpec
    from rattler.exceptions import InvalidMatchSpecError

    spec = yaml.safe_load((ROOT / name).read_text())
    lines = [d for d in spec["dependencies"] if isinstance(d, str)]
    assert {str(MatchSpec(line).name.normalized) for line in lines} == {"python", "pip", "pytorch"}
    with pytest.raises(InvalidMatchSpecError):
        MatchSpec("python=>3.11")


@pytest.mark.slow
def test_the_build_script_leaves_a_lab_that_starts(tmp_path: Path) -> None:
    """Run postBuild and start in an environment of their own, which borrows installed packages."""
    place = tmp_path / "env"
    venv.create(place, with_pip=True)
    (site,) = place.glob("lib/python*/site-packages")
    borrowed = [p for p in sys.path if p.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    env = {
        **os.environ, "NB_PYTHON_PREFIX": str(place), "VIRTUAL_ENV": str(place),
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    built = subprocess.run(
        ["bash", "binder/postBuild"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    assert re.search(r"smollm2-135m is in .* \(checksum [0-9a-f]{16}\)", built.stdout)
    settings = json.loads((place / "share/jupyter/lab/settings/overrides.json").read_text())
    assert settings["@jupyter-widgets/jupyterlab-manager:plugin"] == {"saveState": False}

    look = (
        "import json, os, lwlab; print(json.dumps([lwlab.__file__, os.environ['HF_HUB_OFFLINE'], "
        "os.environ['OMP_NUM_THREADS']]))"
    )
    started = subprocess.run(
        ["bash", str(ROOT / "binder/start"), str(place / "bin/python"), "-c", look],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, offline, threads = json.loads(started.stdout)
    assert Path(where) == ROOT / "lwlab/__init__.py"
    assert (offline, threads) == ("1", "1")
    listed = subprocess.run(
        [str(place / "bin/lwlab"), "list"], env=env, capture_output=True, text=True, check=True
    )
    assert "relp" in listed.stdout
