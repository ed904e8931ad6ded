"""`python -m lwlab.cli` is `lwlab`."""

from __future__ import annotations

from lwlab.cli import main

if __name__ == "__main__":
    main()
