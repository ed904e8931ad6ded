"""Models: names to weights (zoo), weights to a checked `Model`, where its sites are (anatomy)."""

from lwlab.models.anatomy import Anatomy, Tap
from lwlab.models.load import load, wrap
from lwlab.models.model import Model
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens

__all__ = ["SITES", "Address", "Anatomy", "Model", "Tap", "Tokens", "load", "wrap"]
