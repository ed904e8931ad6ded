"""Attribution: which parts of a model an answer came from."""

from lwlab.attribution import atp, exact, ig, placebo, relp
from lwlab.attribution.agreement import agreement, gain
from lwlab.attribution.pairs import COMPONENTS, Pair

__all__ = ["COMPONENTS", "Pair", "agreement", "atp", "exact", "gain", "ig", "placebo", "relp"]
