"""The optional server: its script is safe to start, and runs where its environment is given."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1] / "remote"


def test_the_script_goes_into_a_namespace_before_it_starts_anything() -> None:
    text = (HERE / "up.sh").read_text()
    subprocess.run(["bash", "-n", str(HERE / "up.sh")], check=True)
    unshared = text.index("unshare")
    for start in ("redis-server --bind", "moto_server -H", "ray start", "gunicorn "):
        assert text.index(start) > unshared
    assert re.search(r"unshare .*--net --pid --fork --kill-child", text)
    # inside, it looks for itself whether only the loopback device is there
    assert text.index("if_nameindex") < text.index("redis-server --bind")


def test_it_says_what_it_needs() -> None:
    done = subprocess.run(
        ["bash", str(HERE / "up.sh")], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode != 0
    assert "ENVIRONMENT MODEL" in done.stderr or "needs" in done.stderr


def test_every_tracer_that_runs_remotely_is_in_the_suite() -> None:
    called = {
        node.func.attr
        for node in ast.walk(ast.parse((HERE / "suite.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {"cache", "patch", "ablate", "grads", "chain", "generate"} <= called


@pytest.mark.slow
def test_the_suite_passes_on_a_real_server() -> None:
    """Set LWLAB_NDIF_ENV to an environment made as remote/README.md says."""
    environment = os.environ.get("LWLAB_NDIF_ENV")
    if not environment:
        pytest.skip("no LWLAB_NDIF_ENV: see remote/README.md")
    from lwlab.models import zoo

    model = str(zoo.resolve("smollm2-135m").path)
    done = subprocess.run(
        [str(HERE / "up.sh"), environment, model], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all as here" in done.stdout
