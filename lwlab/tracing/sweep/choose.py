"""Which engine can serve a sweep, and why not a faster one."""

from __future__ import annotations

from typing import Literal

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.sites import Address
from lwlab.tracing.sweep import adapter, resume, rows
from lwlab.tracing.sweep.cost import LOCAL
from lwlab.tracing.sweep.request import Request

Engine = Literal["auto", "packed", "resume", "plain"]
#: Sites whose value at a token is read by later tokens in the same layer.
JOINING = ("resid_pre", "attn_in", "k", "v")
ENGINES = ("auto", "packed", "resume", "plain")


def choose(request: Request, wanted: str) -> tuple[str, str]:
    """Return (engine, reason); BadInput where the engine asked for cannot serve this model."""
    if wanted not in ENGINES:
        raise UnknownName(f"no engine {wanted!r}{suggest(wanted, ENGINES)}")
    if wanted == "plain":
        return "plain", "asked for"
    why = {"packed": packed_refusal(request), "resume": resume.refusal(request.model)}
    if wanted != "auto":
        if why[wanted]:
            raise BadInput(f"engine={wanted!r} cannot serve this sweep: {why[wanted]}")
        return wanted, "asked for"
    if not why["packed"]:
        return "packed", "the architecture has an adapter"
    if not why["resume"]:
        return "resume", f"no packed engine: {why['packed']}"
    return "plain", f"no packed engine: {why['packed']}; not resumed: {why['resume']}"


def packed_refusal(request: Request) -> str | None:
    """Why the packed engine cannot serve a sweep, or None."""
    if why := adapter.refusal(request.model):
        return why
    odd = [s.site for s in request.specs if s.site not in (*LOCAL, *JOINING)]
    return f"it does not know the sites {odd}" if odd else None


def reads(request: Request, engine: str) -> list[Address]:
    """What the unedited run must leave for an engine."""
    wanted = request.addresses()
    if engine != "plain":
        wanted += resume.streams(request.model)
    if engine == "packed":
        sites = rows.needs(request.model.anatomy, {s.site for s in request.specs})
        upward = range(request.layers[0], request.model.n_layers)
        wanted += [Address(s, i) for s in "qkv" for i in upward]
        wanted += [Address(s, i) for s in sorted(sites - set("qkv")) for i in request.layers]
    return list(dict.fromkeys(wanted))
