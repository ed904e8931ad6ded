"""What does it cost to keep every stream of a model? lwlab beside plain PyTorch hooks.

    OMP_NUM_THREADS=1 python benchmarks/cache_cost.py [--rounds 21] [--model smollm2-135m]

One process, one thread. Each round runs every way once, in an order that is turned round from round
to round; a ratio is taken within its round, against hooks. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lwlab as lw
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine

STREAMS = ("resid_pre", "resid_mid", "resid_post")
TEXT = "When Mary and John went to the store, John gave a drink to the girl who sat by the door. "
TARGET, NULL = 1.15, 0.03
Way = Callable[[], Any]


class Hooks:
    """Every stream by forward hooks on the modules that `lw.cache` reads, without copies."""

    def __init__(self, model: lw.Model, plain: nn.Module, tokens: Tokens, logits: bool) -> None:
        self.inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask, "use_cache": False}
        # Without logits lwlab stops after the last block. The body alone does what that takes.
        self.root: Any = plain if logits else plain.get_submodule("model")
        self.logits = logits
        taps = model.anatomy.taps
        self.places = [
            (Address(site, layer), plain.get_submodule(taps[site].at(layer)), taps[site].end)
            for site in STREAMS
            for layer in range(model.n_layers)
        ]

    def bare(self) -> Any:
        """Run the forward pass alone."""
        with torch.no_grad():
            return self.root(**self.inputs)

    def cache(self) -> dict[Address, torch.Tensor]:
        """Run it with hooks, which are set before and taken away after."""
        out: dict[Address, torch.Tensor] = {}
        handles = [hook(module, end, at, out) for at, module, end in self.places]
        try:
            z = self.bare()
        finally:
            for handle in handles:
                handle.remove()
        if self.logits:
            out[Address("logits")] = z.logits
        return out


def hook(module: nn.Module, end: str, at: Address, out: dict[Address, torch.Tensor]) -> Any:
    """Set a hook that keeps one end of a module."""

    def before(_: Any, args: Any, kwargs: Any) -> None:
        out[at] = args[0] if args else kwargs["hidden_states"]

    def after(_: Any, args: Any, output: Any) -> None:
        out[at] = output[0] if isinstance(output, tuple) else output

    if end == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def twin(model: lw.Model) -> nn.Module:
    """The same weights in a module that nnsight has not wrapped."""
    plain = type(model.module)(model.module.config).eval()
    plain.load_state_dict(model.module.state_dict(), assign=True)
    return plain


def ways_of(model: lw.Model, plain: nn.Module, tokens: Tokens, logits: bool) -> dict[str, Way]:
    """Every way to keep the streams, and the forward pass that keeps nothing."""
    hooks = Hooks(model, plain, tokens, logits)
    reads = [Address(s, i) for s in STREAMS for i in range(model.n_layers)]
    sites = [*STREAMS, "logits"] if logits else list(STREAMS)

    return {
        "hooks": hooks.cache,
        "hooks (null)": hooks.cache,
        "bare forward": hooks.bare,
        "engine.run": lambda: engine.run(model, tokens, reads, logits="all" if logits else None),
        "lw.cache": lambda: lw.cache(model, tokens, sites),
    }


def check(ways: dict[str, Way], logits: bool) -> None:
    """All ways give the same numbers, bit for bit, before any is timed."""
    want, trace, labelled = ways["hooks"](), ways["engine.run"](), ways["lw.cache"]()
    for at, value in want.items():
        raw = trace.logits if at.site == "logits" else trace.values[at]
        array = labelled[at.site] if at.layer is None else labelled[at.site].sel(layer=at.layer)
        assert torch.equal(raw, value), at
        assert torch.equal(torch.from_numpy(array.values), value), at
    assert len(want) == len(trace.values) + logits


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way, one number a round."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds + 1):
        shift = r % len(names)
        order = names[shift:] + names[:shift]
        for name in order if r % 2 else order[::-1]:
            begin = time.process_time()
            result = ways[name]()
            spent = time.process_time() - begin
            del result
            if r:  # the first round warms up
                seconds[name].append(spent)
    return seconds


def report(seconds: dict[str, list[float]]) -> tuple[float, bool]:
    """Print the table; return the ratio of lw.cache to hooks, and whether the null pair agrees."""
    medians: dict[str, float] = {}
    for name, spent in seconds.items():
        ratios = [a / b for a, b in zip(spent, seconds["hooks"])]
        medians[name] = statistics.median(ratios)
        low, high = min(ratios), max(ratios)
        cpu = statistics.median(spent) * 1e3
        print(f"  {name:<14} {cpu:8.1f} ms   {medians[name]:5.3f}   ({low:.3f} .. {high:.3f})")
    return medians["lw.cache"], abs(medians["hooks (null)"] - 1) <= NULL


def main() -> int:
    """Measure, print, and return 1 when the target is clearly missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a model of the Llama family")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--tokens", type=int, nargs="+", default=[14, 128])
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = lw.load(given.model)
    plain = twin(model)
    missed = False
    for n in given.tokens:
        for logits in (False, True):
            tokens = model.tokens(model.tokens(TEXT * (1 + n // 16)).ids[:, :n])
            ways = ways_of(model, plain, tokens, logits)
            check(ways, logits)
            print(f"{n} tokens, every stream{' and all logits' if logits else ''}:")
            print(f"  {'':<14} {'CPU':>8}      ratio to hooks, median (min .. max)")
            ratio, quiet = report(measure(ways, given.rounds))
            verdict = "met" if ratio <= TARGET else "MISSED"
            if not quiet:
                verdict = "INCONCLUSIVE: hooks differ from hooks, the machine is too busy"
            missed |= verdict == "MISSED"
            print(f"  lw.cache at most {TARGET} times hooks: {verdict}\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
