"""The gate of a committed notebook: is it what its source says, and fit to publish?"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lwlab._quick import quick_imports
from lwlab.claims import read_claims
from lwlab.errors import BadInput
from lwlab.notebook.build import VEGA, VEGALITE, WIDGET
from lwlab.notebook.parameters import parameters
from lwlab.notebook.source import ROOTS, Header, file_stem, load, read_header, source_hash

MAX_OUTPUT = 300_000  # bytes of JSON of one output
MAX_FILE = 1_000_000
REQUIRED = ("model", "profile", "seed")

# Not after a letter or a slash: addresses and base64 hold such pieces by chance.
_BEFORE = r"(?<![\w/.:+])"
_ANY_HOME = r"/(?:home|Users|root|tmp|private|var/folders)/[\w.-]|[A-Z]:\\\\?Users"


def problems(py: Path) -> list[str]:
    """List what is wrong with a notebook pair, without executing it; an empty list is a pass.

    Checked: the header; the parameters cell (one, with `model`, `profile` and `seed`, literal
    defaults only); the `.ipynb` beside it (built, valid, not stale, executed to the end without
    errors, no live widgets, no output over 300 kB, no file over 1 MB, no path of somebody's
    machine); the claims (some, named once, stated, paper claims pinned, none broken or changed).
    """
    quick_imports()
    try:
        header = read_header(py)
        found = list(_source(py, header, source := load(py)))
    except BadInput as e:
        return [str(e)]
    ipynb = py.with_suffix(".ipynb")
    if not ipynb.exists():
        return [*found, f"{ipynb.name}: not built; run `lwlab notebooks build {header.id}`"]
    return found + [f"{ipynb.name}{p}" for p in _built(ipynb, header, source)]


def is_stale(py: Path) -> bool:
    """Say whether the `.ipynb` beside `py` is missing or was built from another source."""
    quick_imports()
    try:
        text = py.with_suffix(".ipynb").read_text(encoding="utf-8")
        built = json.loads(text)["metadata"]["lwlab"]["source_hash"]
    except (OSError, ValueError, KeyError):
        return True
    return bool(built != source_hash(load(py)))


def _source(py: Path, header: Header, nb: Any) -> Iterator[str]:
    if py.stem != file_stem(header.id):
        yield f"{py.name}: its id is {header.id!r}, so it should be {file_stem(header.id)}.py"
    if header.id in ROOTS:
        return
    if py.parent.name != file_stem(header.family):
        yield f"{py.name}: family {header.family!r}, but the folder is {py.parent.name!r}"
    declared = parameters(nb)
    if declared is None:
        yield f"{py.name}: no cell is tagged 'parameters'"
        return
    for name in sorted(set(REQUIRED) - {p.name for p in declared}):
        yield f"{py.name}: the parameters cell has no {name!r}"
    for p in declared:
        if p.computed:
            yield (
                f"{py.name}: parameter {p.name} = {p.default} is computed; compute it in the next "
                "cell, or values passed on the command line do not reach it"
            )
        elif p.name == "model" and p.default != header.model:
            yield f"{py.name}: model is {p.default!r} by default, {header.model!r} in the header"


def _built(ipynb: Path, header: Header, source: Any) -> Iterator[str]:
    import nbformat

    if (size := ipynb.stat().st_size) > MAX_FILE:
        yield f": {size} bytes, over {MAX_FILE}"
    try:
        nb = nbformat.read(ipynb, as_version=4)
        nbformat.validate(nb)
    except (ValueError, nbformat.ValidationError) as e:
        yield f": not a valid notebook: {str(e)[:200]}"
        return
    if nb.metadata.get("lwlab", {}).get("source_hash") != source_hash(source):
        yield f": stale; run `lwlab notebooks build {header.id}`"
    if "widgets" in nb.metadata:
        yield ": holds widget state"
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "code":
            yield from (f"[{i}]: {p}" for p in _cell(cell))
    try:
        claims = read_claims(nb)
    except BadInput as e:
        yield f": {e}"
        return
    if not claims and header.id not in ROOTS:
        yield ": makes no claim"
    for c in claims:
        yield from (f"[{c['cell']}]: claim {c['id']} {p}" for p in _claim(c))


def _cell(cell: Any) -> Iterator[str]:
    if cell.source.strip() and cell.execution_count is None:
        yield "not executed"
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get(
            "tags", []
        ):
            yield f"ends in {output.ename}: {output.evalue[:80]}"
        data = output.get("data", {})
        if WIDGET in data:
            yield "a live widget without a static form"
        if (VEGALITE in data or VEGA in data) and "image/png" not in data:
            yield "a chart that could not be drawn as a picture"
        if (size := len(json.dumps(output))) > MAX_OUTPUT:
            yield f"an output of {size} bytes, over {MAX_OUTPUT}"
        for text in _texts(output):
            if path := _machine_path(text):
                yield f"an output holds a path of this machine: {path}"
                break


def _texts(output: Any) -> Iterator[str]:
    yield output.get("text", "")
    yield "\n".join(output.get("traceback", []))
    for mime, value in output.get("data", {}).items():
        if not mime.startswith("image/") or mime == "image/svg+xml":
            yield value if isinstance(value, str) else json.dumps(value)


def _machine_path(text: str) -> str:
    own = [str(Path.home()), sys.prefix, str(Path.cwd())]
    here = "".join(rf"|{re.escape(path)}\b" for path in own if len(path) > 4)
    match = re.search(rf"{_BEFORE}(?:{_ANY_HOME}{here})[^\s'\"<>]*", text)
    return match[0][:80] if match else ""


def _claim(c: dict[str, Any]) -> Iterator[str]:
    if c["verdict"] == "broken":
        yield f"is broken: {c['measured']}, expected {c['expect']}"
    if c["changed"]:
        yield f"changed: pinned {c['pinned']!r}, measured {c['verdict']!r}"
    if c["kind"] == "paper" and c["pinned"] is None:
        yield f"has no pinned verdict for {c['model'] or 'its model'}"
    if not c["statement"]:
        yield "does not say in words what it states"
