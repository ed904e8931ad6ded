"""Errors a user can act on: what was given, what is wrong with it, what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LwlabError(Exception):
    """Base of every error lwlab raises on purpose."""


class BadInput(LwlabError, ValueError):
    """An argument that cannot work; raised before any long computation."""


class UnknownName(BadInput):
    """A name (model, site, technique, parameter) that is not known."""


class MissingSite(BadInput):
    """A site of the vocabulary that this architecture does not have."""


class FetchError(LwlabError):
    """Weights that could not be fetched, or that arrived damaged."""


class NoFiring(LwlabError):
    """An intervention that was asked for and never happened."""


class Diverged(LwlabError):
    """A training run whose loss stopped being a number."""


class ClaimFailed(LwlabError, AssertionError):
    """An exact claim (mathematics says so) that does not hold."""


class RunError(LwlabError):
    """A notebook run that did not finish."""


def suggest(name: str, options: Iterable[str], limit: int = 12) -> str:
    """Return "; did you mean 'x'? Available: a, b, ..." for an unknown `name` among `options`."""
    known = sorted(set(options))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    shown = ", ".join(known[:limit])
    shown += f", ... ({len(known)} in all)" if len(known) > limit else ""
    return f"{hint} Available: {shown or 'none'}."
