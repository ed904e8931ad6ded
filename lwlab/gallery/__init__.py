"""A static site of all executed notebooks: the atlas, one page a notebook, claims by model.

Sphinx and MyST-NB make the pages. Nothing in them comes from a network, so that the site opens from
a folder (`file://`) as it does from a server.
"""

from __future__ import annotations

from lwlab.gallery.site import Gallery, build

__all__ = ["Gallery", "build"]
