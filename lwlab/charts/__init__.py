"""Charts of labelled results: plain Altair that draws offline, in any notebook, in colours all see.

Each function takes an `xarray` result and returns an Altair chart, to be displayed, layered or
placed side by side (`beside(a, b)`). This package is cheap to import; Altair comes with the first
chart.
"""

from __future__ import annotations

from lwlab.charts._altair import beside, enable, to_png
from lwlab.charts._heatmap import head_grid, heatmap
from lwlab.charts._lines import profile
from lwlab.charts._scatter import scatter

__all__ = ["beside", "enable", "head_grid", "heatmap", "profile", "scatter", "to_png"]
