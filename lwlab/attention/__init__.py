"""Attention heads: where they look, measured while the model runs."""

from lwlab.attention.stats import stats

__all__ = ["stats"]
