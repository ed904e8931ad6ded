"""The remote suite: what runs on a server is what runs here, tracer by tracer.

python remote/suite.py MODEL_FOLDER ADDRESS
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr

import lwlab as lw
from lwlab.errors import LwlabError

PROMPTS = ["The capital of France is", "When Mary and John went to the store, John gave a drink to"]


def gap(a: xr.Dataset, b: xr.Dataset) -> float:
    """Largest difference between two results; raises where they hold different things."""
    if set(a.data_vars) != set(b.data_vars):
        raise AssertionError(f"{sorted(map(str, a))} here, {sorted(map(str, b))} there")
    worst = 0.0
    for name in a.data_vars:
        x, y = a[name].values, b[name].values
        if x.dtype.kind in "fi":
            worst = max(worst, float(np.nanmax(np.abs(x.astype(float) - y.astype(float)))))
        elif list(x) != list(y):
            raise AssertionError(f"{name}: {x} here, {y} there")
    return worst


def main(folder: str, address: str) -> int:
    """Run every tracer here and there; print what differs and how long it took."""
    here, there = lw.load(folder), lw.load(folder, remote=address)
    print(f"here  {here}\nthere {there}, weights here: "
          f"{sum(not p.is_meta for p in there.module.parameters())}", flush=True)  # fmt: skip
    half = torch.tensor(0.5)
    runs: dict[str, Callable[[lw.Model], Any]] = {
        "cache": lambda m: lw.cache(m, PROMPTS, ["q", "head_out", "neurons"], [0, 5, -1]),
        "cache, all logits": lambda m: lw.cache(m, PROMPTS, "logits"),
        "cache, 30 layers": lambda m: lw.cache(m, PROMPTS, ["resid_pre", "resid_mid", "mlp_out"]),
        "patch": lambda m: lw.patch(m, PROMPTS, {"resid_pre.7": lambda h: h * half}),
        "ablate, mean": lambda m: lw.ablate(m, PROMPTS, "mlp_out.3", how="mean"),
        "grads": lambda m: lw.grads(m, PROMPTS, lambda z: z[:, 10] - z[:, 20], "head_out"),
        "chain": lambda m: lw.chain(m, PROMPTS, [i for i in range(m.n_layers) if i != 4]),
        "generate": lambda m: lw.generate(m, PROMPTS, 8),
        "generate, edited": lambda m: lw.generate(m, PROMPTS, 8, {"resid_post.9": lambda h: 2 * h}),
    }  # fmt: skip
    failed = 0
    for name, run in runs.items():
        mine = run(here)
        seconds = []
        try:
            for _ in range(2):  # the first call deploys the model
                start = time.perf_counter()
                theirs = run(there)
                seconds.append(time.perf_counter() - start)
            worst = gap(mine, theirs)
        except (LwlabError, AssertionError) as error:
            failed += 1
            print(f"FAILED {name}: {error}", flush=True)
            continue
        good = worst <= 1e-4
        failed += not good
        print(f"{'ok    ' if good else 'DIFFER'} {name:20} largest difference {worst:.1e}   "
              f"first {seconds[0]:6.2f} s, again {seconds[1]:5.2f} s", flush=True)  # fmt: skip
    for name, attempt in {
        "an error over there": lambda: lw.patch(there, PROMPTS, {"resid_pre.1": lambda h: h @ h}),
        "the weights here": lambda: there.unembed(torch.zeros(1, there.d_model or 0)),
        "attention patterns": lambda: lw.cache(there, PROMPTS, "attn_pattern"),
    }.items():
        try:
            attempt()
            failed += 1
            print(f"FAILED {name}: nothing was refused", flush=True)
        except LwlabError as error:
            print(f"ok     {name}: {type(error).__name__}: {str(error)[:110]}", flush=True)
    print("all as here" if not failed else f"{failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
