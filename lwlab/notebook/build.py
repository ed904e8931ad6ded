"""Build the committed .ipynb of a pair: executed from its source, frozen, small."""

from __future__ import annotations

import base64
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

from lwlab._quick import quick_imports
from lwlab.charts.png import small, squeeze
from lwlab.errors import RunError
from lwlab.notebook import record
from lwlab.notebook.engine import Outcome, Progress, run_notebook
from lwlab.notebook.parameters import parameters
from lwlab.notebook.source import file_stem, load, read_header, source_hash
from lwlab.paths import write_atomic

WIDGET = "application/vnd.jupyter.widget-view+json"
VEGALITE = "application/vnd.vegalite.v5+json"
VEGA = "application/vnd.vega.v5+json"

_MAX_PNG = 200_000  # bytes; above it the picture is drawn at half the resolution
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def build(
    py: Path, *, timeout: float | None = None, progress: Progress | None = None
) -> tuple[Path, Outcome]:
    """Execute a py:percent source and write its frozen `.ipynb` beside it, atomically.

    What the run used and cost (`record.facts`) stands in its metadata, under `lwlab.run`.

    Parameters
    ----------
    py : the source; the parameters keep their defaults.
    timeout : seconds for the whole run.

    Returns
    -------
    The path written, and how the run went (its seconds and peak memory belong in the header).

    Raises
    ------
    BadInput
        If the source has no valid header.
    RunError
        If a cell fails; the `.ipynb` is left as it was and the message names the partial run.
    """
    quick_imports()
    import nbformat

    header = read_header(py)
    ipynb = py.with_suffix(".ipynb")
    nb = load(py)
    digest = source_hash(nb)
    scratch = Path(tempfile.mkdtemp(prefix="lwlab-build-"))
    executed = scratch / f"{file_stem(header.id)}.ipynb"
    outcome = run_notebook(nb, executed, cwd=py.parent, timeout=timeout, progress=progress)
    if outcome.failure is not None:
        f = outcome.failure
        raise RunError(f"{py.name} cell {f.cell}: {f.name}: {f.message}\nThe run is in {executed}")
    done = freeze(nbformat.read(executed, as_version=4))
    done.metadata = nb.metadata
    values = {"model": header.model, **{p.name: p.default for p in parameters(nb) or []}}
    facts = record.facts(values, outcome.seconds, outcome.peak_memory_mb)
    done.metadata["lwlab"] = {**header.metadata(), "source_hash": digest, "run": facts}
    write_atomic(ipynb, nbformat.writes(done, version=4) + "\n")
    executed.unlink()
    scratch.rmdir()
    return ipynb, outcome


def freeze(nb: Any) -> Any:
    """Drop from an executed notebook what only a live kernel can show, and bake pictures in.

    Widget state and live views go (their static form stays); a chart becomes a PNG, which code
    hosts and untrusting readers show too, with a palette, to be small; memory
    addresses and run timings go, as they change from run to run.
    """
    nb.metadata.pop("widgets", None)
    nb.metadata.pop("papermill", None)
    for cell in nb.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            cell.metadata.pop("tags")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET in data and len(data) > 1:
                data.pop(WIDGET)
                output.metadata.pop(WIDGET, None)
                if "image/png" in data:
                    data.pop("text/html", None)  # hosts prefer HTML, then strip its colours
            if "text/plain" in data:
                data["text/plain"] = _ADDRESS.sub("", data["text/plain"])
    for cell in bake(nb, scale=1.5).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = small(base64.b64decode(output.data["image/png"]))
                output.data["image/png"] = base64.b64encode(png).decode()
                for mime in (VEGALITE, VEGA):
                    output.data.pop(mime, None)
                    output.metadata.pop(mime, None)
    return nb


def bake(nb: Any, scale: float = 2.0) -> Any:
    """Add a PNG to every chart output of `nb` that has none (in place); return `nb`.

    A chart that cannot be drawn stays without one; the gate of committed notebooks names it.
    """
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if (VEGALITE in data or VEGA in data) and "image/png" not in data:
                drawn = scale
                try:
                    if len(png := _draw(data, drawn)) > _MAX_PNG:
                        png = _draw(data, drawn := 1.0)
                except ValueError:
                    continue
                data["image/png"] = base64.b64encode(png).decode()
                # bytes 16 to 24 of a PNG are its width and height
                width, height = (int(v / drawn) for v in struct.unpack(">II", png[16:24]))
                output.metadata["image/png"] = {"width": width, "height": height}
    return nb


def _draw(data: Any, scale: float) -> bytes:
    import vl_convert

    if VEGALITE in data:  # JupyterLab draws it with Vega-Lite 5; 5.8 is the nearest here
        return squeeze(vl_convert.vegalite_to_png(data[VEGALITE], vl_version="5.8", scale=scale))
    return squeeze(vl_convert.vega_to_png(data[VEGA], scale=scale))
