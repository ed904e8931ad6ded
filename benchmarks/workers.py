"""How much faster are two workers than one, on eight rows of a sweep? Wall time, so it wants quiet.

    python benchmarks/workers.py            # rows that sleep: what the scheduling itself allows
    python benchmarks/workers.py relp n=4   # rows of a real notebook, a seed each

Each number of workers is timed on a cluster of its own, in turns; starting it is not counted, as a
long sweep pays for it once. Rows that sleep need no processor, so they show the scheduling on a
busy machine too; rows that compute show what the second core is worth at that moment.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lwlab as lw
from lwlab.runs.board import State

SLEEPS = """\
# %% tags=["parameters"]
seed: int = 0

# %%
import time
time.sleep(4)
"""
ROWS, ROUNDS = 8, 3


def seconds(target: str | Path, given: dict[str, Any], workers: int) -> float:
    """Wall seconds from the first row's start to the last one's end."""
    began: list[float] = []
    ended: list[float] = []

    def see(state: State) -> None:
        if state.running and not began:
            began.append(time.perf_counter())
        ended[:] = [time.perf_counter()] if state.last else ended

    axes = {"seed": range(ROWS), **given}
    with tempfile.TemporaryDirectory() as out:
        done = lw.runs.sweep(target, axes, out, workers=workers, progress=see)
        assert not done.failed, done.failed
        return ended[0] - began[0]


def main() -> None:
    """Time both numbers of workers in turns and print the ratio."""
    target: str | Path = Path(tempfile.mkdtemp()) / "sleeps.py"
    given: dict[str, Any] = {}
    if len(sys.argv) > 1:
        target = sys.argv[1]
        given = {k: int(v) for k, _, v in (a.partition("=") for a in sys.argv[2:])}
    else:
        Path(target).write_text(SLEEPS)
    ratios = []
    for turn in range(ROUNDS if len(sys.argv) == 1 else 1):
        order = (1, 2) if turn % 2 == 0 else (2, 1)
        load = os.getloadavg()[0]
        taken = {n: seconds(target, given, n) for n in order}
        ratios.append(taken[1] / taken[2])
        print(
            f"{ROWS} rows: 1 worker {taken[1]:.1f} s, 2 workers {taken[2]:.1f} s, "
            f"speed-up {ratios[-1]:.2f} (load before {load:.1f})",
            flush=True,
        )
    print(f"median speed-up {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
