"""The source of a notebook: a py:percent file whose YAML header says what it is.

# ---
# jupyter:
#   lwlab:
#     id: relp
#     family: attribution
#     title: "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching"
#     paper: "2508.21258"
#     cost: {seconds: 45, memory_mb: 1300}
#     model: smollm2-135m
# ---
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwlab.errors import BadInput

#: The door (`notebooks/index.py`) belongs to no family and measures no paper.
DOOR = "index"
#: Notebooks beside it, as it: the tour of the instruments.
ROOTS = (DOOR, "touch")

KERNELSPEC = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


@dataclass(frozen=True)
class Header:
    """What a notebook says about itself; cost is wall seconds and peak megabytes of its kernel.

    `paper` is empty for a notebook on lwlab itself, whose header says so: `paper: ""`.
    """

    id: str
    title: str
    family: str = ""
    paper: str = ""
    model: str = ""
    seconds: float = 0.0
    memory_mb: float = 0.0

    def metadata(self) -> dict[str, Any]:
        """Return the header as notebook metadata, in the form it is written."""
        out: dict[str, Any] = {"id": self.id, "title": self.title}
        if self.id not in ROOTS:
            cost = {"seconds": self.seconds, "memory_mb": self.memory_mb}
            out |= {"family": self.family, "paper": self.paper, "model": self.model, "cost": cost}
        return out


def file_stem(id: str) -> str:
    """Return an id as file names write it: `depth-efficiency` -> `depth_efficiency`."""
    return id.replace("-", "_")


def read_header(py: Path) -> Header:
    """Read the `lwlab` header of a py:percent file without loading the notebook.

    Raises
    ------
    BadInput
        If there is no header, or a field is missing or of the wrong type.
    """
    import yaml  # type: ignore[import-untyped]

    lines: list[str] = []
    with py.open(encoding="utf-8") as f:
        if f.readline().rstrip() == "# ---":
            for line in f:
                if line.rstrip() == "# ---":
                    break
                lines.append(line[2:] if line.startswith("# ") else line.lstrip("#"))
    try:
        header = yaml.safe_load("".join(lines))
    except yaml.YAMLError as e:
        raise BadInput(f"{py.name}: the YAML header cannot be read: {e}") from None
    jupyter = header.get("jupyter") if isinstance(header, dict) else None
    fields = jupyter.get("lwlab") if isinstance(jupyter, dict) else None
    if not isinstance(fields, dict):
        raise BadInput(f"{py.name}: no `lwlab:` under `jupyter:` in the YAML header.")
    return parse_header(fields, py.name)


def parse_header(fields: dict[str, Any], where: str) -> Header:
    """Check the fields of a `lwlab` header and return them; `where` names the file in errors."""

    def text(name: str) -> str:
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            return value
        quote = f' (quote it: {name}: "{value}")' if isinstance(value, int | float) else ""
        raise BadInput(f"{where}: the header's lwlab.{name} is {value!r}, not a text{quote}.")

    def amount(name: str) -> float:
        cost = fields.get("cost")
        value = cost.get(name) if isinstance(cost, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return value
        raise BadInput(
            f"{where}: the header's lwlab.cost.{name} is {value!r}, not a positive number; "
            "write cost: {seconds: 45, memory_mb: 1300}."
        )

    if fields.get("id") in ROOTS:
        return Header(id=text("id"), title=text("title"))
    return Header(
        id=text("id"), title=text("title"), family=text("family"),
        paper="" if fields.get("paper") == "" else text("paper"),
        model=text("model"), seconds=amount("seconds"), memory_mb=amount("memory_mb"),
    )  # fmt: skip


def load(py: Path) -> Any:
    """Load a py:percent file as a notebook without outputs (an nbformat node).

    Cell ids derive from the cells' content, so that rebuilding changes only what changed.
    """
    import jupytext
    import nbformat

    nb = jupytext.read(py)
    seen: Counter[tuple[str, str]] = Counter()
    for cell in nb.cells:
        key = (cell.cell_type, cell.source)
        digest = hashlib.sha256("\0".join((*key, str(seen[key]))).encode()).hexdigest()
        cell["id"] = digest[:8]
        seen[key] += 1
    own = nb.metadata.get("lwlab", {})
    nb.metadata = nbformat.from_dict(
        {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}, "lwlab": dict(own)}
    )
    return nb


def source_hash(nb: Any) -> str:
    """Return a digest of everything in `nb` that its author wrote: cells, tags and header."""
    made = ("source_hash", "run")  # what building and running wrote
    header = {k: v for k, v in nb.metadata.get("lwlab", {}).items() if k not in made}
    written = [[c.cell_type, c.source, c.metadata] for c in nb.cells]
    return hashlib.sha256(json.dumps([header, written], sort_keys=True).encode()).hexdigest()[:16]
