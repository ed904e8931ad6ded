"""The ledger of checked claims: what a notebook found, as data a runner can read and check.

>>> import lwlab as lw
>>> c = lw.claim("relp.conservation", measured=2e-7, expect="< 1e-5", kind="exact", n=8, seed=0)
✓ holds: relp.conservation = 2e-07 (expected < 1e-5) — n=8, seed 0
"""

from __future__ import annotations

from lwlab.claims.expect import Expectation, parse
from lwlab.claims.record import MIME, Claim, claim
from lwlab.claims.tables import ClaimTable, read_claims, table

__all__ = ["MIME", "Claim", "ClaimTable", "Expectation", "claim", "parse", "read_claims", "table"]
