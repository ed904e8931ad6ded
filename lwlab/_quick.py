"""jsonschema without a grammar that takes it 1.5 s to compile and that checks only IRIs."""

from __future__ import annotations

import sys


def quick_imports() -> None:
    """Import jsonschema; call before the first import of altair, nbformat, papermill or nbconvert.

    jsonschema treats `rfc3987_syntax` as optional; it is hidden only while jsonschema is imported.
    """
    hidden = "rfc3987_syntax" not in sys.modules
    if hidden:
        sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    try:
        import jsonschema  # type: ignore[import-untyped]  # noqa: F401
    finally:
        if hidden:
            del sys.modules["rfc3987_syntax"]
