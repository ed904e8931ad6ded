"""A claim: one number a notebook measured, what was expected of it, and the verdict."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lwlab import __version__
from lwlab.claims import show
from lwlab.claims.expect import Expectation, parse, scalar
from lwlab.errors import BadInput, ClaimFailed, suggest

MIME = "application/vnd.lwlab.claim+json"
VERDICTS = {"exact": ("holds", "broken"), "paper": ("reproduced", "not reproduced")}
_ID = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


@dataclass(frozen=True)
class Claim:
    """One checked statement. `record()` is what travels in the notebook."""

    id: str
    statement: str
    paper: str
    measured: bool | int | float
    expect: str
    kind: str
    verdict: str
    pinned: str | None
    changed: bool
    n: int | None
    seed: int | None
    interval: tuple[float, float] | None
    borderline: bool
    unit: str
    note: str
    model: str | None
    lwlab_version: str

    @property
    def ok(self) -> bool:
        """False if an exact claim is broken or a paper claim's verdict differs from its pin."""
        return self.verdict != "broken" and not self.changed

    def record(self) -> dict[str, Any]:
        """Return the claim as JSON-able data; NaN and infinities become strings."""
        out = asdict(self)
        out["measured"] = _jsonable(self.measured)
        if self.interval is not None:
            out["interval"] = [_jsonable(v) for v in self.interval]
        return out

    def __str__(self) -> str:
        return show.text(self.record())

    def bundle(self) -> dict[str, Any]:
        """Return the claim as a notebook output: its record, HTML and text."""
        record = self.record()
        return {MIME: record, "text/html": show.html(record), "text/plain": show.text(record)}

    def _ipython_display_(self) -> None:
        # `claim()` has shown it. As the last value of that same cell it must not appear again;
        # in a later cell it appears without its record, so that a reader counts it once.
        from IPython import get_ipython
        from IPython.display import display

        if _shown_in.get(self.id) != get_ipython().execution_count:
            record = self.record()
            display({"text/html": show.html(record), "text/plain": show.text(record)}, raw=True)


#: Claims made in this process, by id; running a cell again replaces its claim.
made: dict[str, Claim] = {}
_shown_in: dict[str, int] = {}


def claim(
    id: str,
    *,
    measured: Any,
    expect: str,
    kind: Literal["exact", "paper"],
    statement: str = "",
    paper: str = "",
    n: int | None = None,
    seed: int | None = None,
    interval: Sequence[float] | None = None,
    model: Any = None,
    pinned: str | Mapping[str, str] | None = None,
    unit: str = "",
    note: str = "",
) -> Claim:
    """Record and show one claim.

    Parameters
    ----------
    id : name of the claim, unique in its notebook: lower case, digits, hyphens and dots.
    measured : one number or truth value (a numpy, torch or xarray scalar will do).
    expect : what it must be: '< 1e-3', '>= 0.9', '== 0', '0.95 +- 0.03', 'in [0.2, 0.4]', 'true'.
    kind : 'exact' if mathematics says so (verdict 'holds' or 'broken'), 'paper' if it is a paper's
        finding measured here (verdict 'reproduced' or 'not reproduced').
    statement : the finding in words.
    n, seed, interval : how many samples, which seed, and a (low, high) interval for a mean.
    model : the model measured, a `Model` or its name.
    pinned : the verdict known so far for a paper claim: one string, or one a model name. A
        different verdict is marked as changed, shown loudly, and fails `lwlab report
        --fail-on-change` and the notebook tests; it does not stop the notebook.

    Returns
    -------
    Claim
        Shown at once: as HTML in a notebook, as text elsewhere.

    Raises
    ------
    ClaimFailed
        If an exact claim does not hold (after it was shown).
    BadInput
        If an argument cannot work.
    """
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise BadInput(
            f"claim id {id!r} must be lower-case letters and digits joined by hyphens or dots, "
            "such as 'relp.beats-atp'."
        )
    if kind not in VERDICTS:
        raise BadInput(f"claim {id!r} has kind={kind!r}" + suggest(str(kind), VERDICTS))
    value, rule = scalar(measured), parse(expect)
    if isinstance(value, bool) != (rule.op == "true"):
        raise BadInput(
            f"claim {id!r} measured {value!r} and expects {expect!r}: expect 'true' goes with "
            "True/False, every other expectation with a number."
        )
    name = getattr(model, "name", model)
    if name is not None and not isinstance(name, str):
        raise BadInput(f"claim {id!r}: model={model!r:.60} is neither a Model nor a model's name.")
    held = rule.holds(value)
    verdict = VERDICTS[kind][0 if held else 1]
    pin = _pin(id, kind, pinned, name)
    limits = _interval(id, interval)
    result = Claim(
        id=id, statement=statement, paper=paper, measured=value, expect=rule.text, kind=kind,
        verdict=verdict, pinned=pin, changed=pin is not None and pin != verdict, n=_int("n", n),
        seed=_int("seed", seed), interval=limits, borderline=_borderline(rule, held, limits),
        unit=unit, note=note, model=name, lwlab_version=__version__,
    )  # fmt: skip
    made[id] = result
    _display(result)
    if verdict == "broken":
        raise ClaimFailed(
            f"exact claim {id!r} is broken: measured {show.measured(result.record())}, "
            f"expected {rule.text}."
        )
    return result


def _int(name: str, value: Any) -> int | None:
    if value is None:
        return None
    value = scalar(value)
    if isinstance(value, bool) or int(value) != value:
        raise BadInput(f"{name}={value!r} is not a whole number.")
    return int(value)


def _pin(
    id: str, kind: str, pinned: str | Mapping[str, str] | None, model: str | None
) -> str | None:
    if pinned is None:
        return None
    if kind == "exact":
        raise BadInput(f"claim {id!r} is exact: it must hold on every model, so it takes no pin.")
    legal = VERDICTS[kind]
    for verdict in [pinned] if isinstance(pinned, str) else pinned.values():
        if verdict not in legal:
            raise BadInput(f"claim {id!r} is pinned to {verdict!r}" + suggest(str(verdict), legal))
    if isinstance(pinned, str):
        return pinned
    if model is None:
        raise BadInput(f"claim {id!r} is pinned by model name: pass model= as well.")
    return pinned.get(model)


def _interval(id: str, interval: Sequence[float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    ends = [float(scalar(v)) for v in interval]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise BadInput(f"claim {id!r}: interval={ends} must be (low, high) with low <= high.")
    return ends[0], ends[1]


def _borderline(rule: Expectation, held: bool, limits: tuple[float, float] | None) -> bool:
    return limits is not None and any(rule.holds(v) != held for v in limits)


def _jsonable(value: bool | int | float) -> bool | int | float | str:
    return value if math.isfinite(value) else str(value)


def _display(result: Claim) -> None:
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if (shell := get_ipython()) is not None:
            display(result.bundle(), raw=True)
            _shown_in[result.id] = shell.execution_count
            return
    print(result)
