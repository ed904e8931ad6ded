"""Thresholds on gates, and decoding with only the neurons that pass them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.activations.mlps import GatedMLP, gated_mlps
from lwlab.activations.swap import Prompt, Swapped, SwappedMLP, by_layer, check_prompt, swapped
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tracing import engine

# Up to so many tokens each walks through its own neurons; more share a dense product with a mask.
_FEW = 4


def thresholds(
    model: Model,
    texts: str | Sequence[str],
    sparsity: float,
    layers: Iterable[int] | int | None = None,
    *,
    rule: Literal["chess", "cats"] = "chess",
    max_tokens: int = 256,
    skip: int = 1,
    max_bytes: float = 512e6,
) -> xr.DataArray:
    """Thresholds t (layer, neuron) that leave out a fraction `sparsity` of neurons on `texts`.

    With a = f(gate), u = up: rule="chess": T is the `sparsity` quantile of |a_i| U_i over all
    tokens and neurons of the layer, U_i = mean |u_i|, and t_i = T / U_i (He et al. 2024,
    arXiv:2409.01366); rule="cats": t is the quantile of |a|, one for the layer (arXiv:2404.08763).
    A neuron is left out where |a_i| < t_i, and T is the smallest score kept, so
    floor(sparsity n) of the n scores are left out, but for ties and the rounding of T / U_i;
    sparsity 0 gives t = 0.

    Texts are cut after `max_tokens`; the first `skip` tokens are run and not counted (position 0
    is an attention sink). Layers are taken in turns so that scores stay under `max_bytes`.

    Raises BadInput for a sparsity outside [0, 1), no tokens to count, an unknown rule;
    MissingSite for MLPs that are not gated (see `gated_mlps`).
    """
    if not 0 <= sparsity < 1:
        raise BadInput(f"sparsity={sparsity}: a fraction from 0 up to, not including, 1")
    if rule not in ("chess", "cats"):
        raise BadInput(f"rule={rule!r}: 'chess' or 'cats'")
    mlps = gated_mlps(model, layers)
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = [model.tokens(t).ids[:, :max_tokens] for t in texts]
    n = sum(max(0, row.shape[1] - skip) for row in rows)
    if n <= 0 or skip < 0:
        raise BadInput(f"no text is longer than the skip={skip} token(s) that are not counted")
    rows = [row for row in rows if row.shape[1] > skip]
    width = model.d_mlp or 1
    per_pass = max(1, int(max_bytes // (8 * n * width)))
    out = torch.zeros(len(mlps), width)
    for first in range(0, len(mlps), per_pass):
        part = mlps[first : first + per_pass]
        for k, (a, u) in enumerate(_gates(model, part, rows, skip), start=first):
            out[k] = _limits(a, u, sparsity, rule)
    return label(
        out, ("layer", "neuron"), {"layer": [m.layer for m in mlps]}, name="threshold",
        **provenance(
            model, technique=rule, paper="2409.01366" if rule == "chess" else "2404.08763",
            sparsity=sparsity, tokens=n,
        ),
    )  # fmt: skip


def _gates(
    model: Model, part: list[GatedMLP], rows: list[torch.Tensor], skip: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """|f(gate)| [tokens, neurons] and mean |up| [neurons] of each layer."""
    from lwlab_kernels.sparse_mlp import ACTIVATIONS

    reads = [Address(site, m.layer) for m in part for site in ("mlp_gate", "mlp_up")]
    gates: list[list[torch.Tensor]] = [[] for _ in part]
    ups = [torch.zeros(model.d_mlp or 0, dtype=torch.float64) for _ in part]
    for row in rows:
        found = engine.run(model, row, reads, logits=None).values
        for k, m in enumerate(part):
            g = found[Address("mlp_gate", m.layer)][0, skip:].float().cpu()
            gates[k].append(ACTIVATIONS[m.act](g).abs())
            u = found[Address("mlp_up", m.layer)][0, skip:].float().cpu()
            ups[k] += u.abs().sum(0, dtype=torch.float64)
    for a, u in zip(gates, ups):
        together = torch.cat(a)
        yield together, (u / len(together)).float()


def _limits(a: torch.Tensor, u: torch.Tensor, sparsity: float, rule: str) -> torch.Tensor:
    """Thresholds [neurons] from |a| [tokens, neurons] and U [neurons]."""
    left_out = int(sparsity * a.numel())
    if not left_out:
        return torch.zeros(a.shape[1])
    score = a * u if rule == "chess" else a
    limit = score.flatten().kthvalue(left_out + 1).values
    return limit / u if rule == "chess" else limit.expand(a.shape[1])


class ThresholdMLP(SwappedMLP):
    """The MLP with f(gate) cut at `limit`: the kernel for a few tokens, a mask for many."""

    def __init__(
        self, mlp: GatedMLP, limit: torch.Tensor, prompt: Prompt, backend: str | None
    ) -> None:
        super().__init__(mlp, prompt)
        weight = mlp.gate.weight
        self.limit = limit.to(weight.device, torch.float32)
        self.down_t = mlp.down.weight.detach().T.contiguous()
        self.backend = backend
        self.used: str = ""

    def few(self, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        """See `SwappedMLP.few`."""
        from lwlab_kernels.sparse_mlp import ACTIVATIONS, sparse_mlp

        mlp: GatedMLP = self.__dict__["mlp"]
        if len(rows) <= _FEW:
            found = sparse_mlp(
                rows, mlp.gate.weight, mlp.up.weight, self.down_t, threshold=self.limit,
                act=mlp.act, backend=self.backend,
            )  # fmt: skip
            self.used = found.backend
            return found.y, int(found.active.sum())
        a = ACTIVATIONS[mlp.act](F.linear(rows, mlp.gate.weight))
        out = a.float().abs() < self.limit
        h = a.masked_fill(out, 0) * F.linear(rows, mlp.up.weight)
        return F.linear(h, mlp.down.weight), out.numel() - int(out.sum())


@contextlib.contextmanager
def sparse_decode(
    model: Model,
    limits: xr.DataArray,
    *,
    prompt: Prompt = "dense",
    backend: str | None = None,
) -> Iterator[Swapped]:
    """Within the block, MLPs leave out neurons with |f(gate_i . x)| < t_i, token by token.

    limits: t (layer, neuron), from `thresholds`; layers it lacks stay as they are. Single
    positions (decoding) go through `lw.kernels.sparse_mlp`, which reads up_i and down_i only where
    they are needed; `backend` forces one of its backends. prompt="dense" leaves passes over
    several positions alone, "sparse" cuts them as well (by a mask, for scores: no time is saved).

    The yielded object counts neurons (`active()`); its `model` runs by plain forward passes,
    `generate` and scores made of them; sites inside the exchanged MLPs cannot be traced meanwhile.
    Under the model's lock; the MLPs are put back at the end, also after an exception. A transposed
    copy of W_down is held meanwhile. Gradients do not pass a kernel.

    Raises BadInput for limits that do not fit the model or hold NaN, MissingSite for MLPs that are
    not gated (see `gated_mlps`), UnknownName for a backend.
    """
    check_prompt(prompt)
    rows = by_layer(limits, model, "limits")
    if any(bool(t.isnan().any()) for t in rows.values()):
        raise BadInput("limits holds NaN")
    mlps = gated_mlps(model, list(rows))
    if backend is not None:
        from lwlab_kernels.choose import choose

        choose(backend, mlps[0].gate.weight)
    parts = [ThresholdMLP(m, rows[m.layer], prompt, backend) for m in mlps]
    with swapped(model, parts, "sparse decoding") as out:
        yield out
