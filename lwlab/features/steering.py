"""Steering at the neurons of one layer, every direction as strong as every other (equal KL)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput, MissingSite, NoFiring
from lwlab.features.matrix import matrix
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tracing import lock
from lwlab.tracing.blocks import Blocks, capture, one_by_one
from lwlab.tracing.write import kl


def steer(
    model: Model,
    prompts: Sequence[str],
    directions: xr.DataArray,
    layer: int,
    lists: Mapping[str, Sequence[int]],
    *,
    target: float = 0.5,
    tolerance: float = 0.02,
    rounds: int = 16,
) -> xr.Dataset:
    """Add alpha z_j / |z_j| to the neurons at every position, alpha such that KL is `target`.

    For each direction z_j (feature, neuron), alpha_j > 0 is such that KL(p || p_j), in nats at the
    last token and averaged over `prompts`, is `target` up to the share `tolerance`: all directions
    then disturb the model equally. Only the blocks from `layer` on are run again.

    `lists`: name -> token ids. Returns `alpha`, `kl`, `share` = alpha over the mean norm of the
    neurons there, `reached` (all of them (feature,)), and `gain` (feature, list, prompt) = change
    of log sum p(token of the list), in nats. A direction that does not come to the target within
    `rounds` runs has the nearest `kl` it had, and `reached` False.

    Raises BadInput for directions of another width or of length zero, an empty list, ids outside
    the vocabulary, a model that cannot be resumed from a layer; MissingSite for one without neurons
    or logits.
    """
    z = _check(model, directions, layer, lists, target)
    at = model.anatomy.layers(layer)[0]
    ids = [torch.tensor(sorted(set(v))) for v in lists.values()]
    with torch.no_grad(), lock(model):
        asked = _Asked(model, [capture(model, t) for t in one_by_one(model.tokens(list(prompts)))],
                       at, ids)  # fmt: skip
        first = torch.full((len(z),), 1.5 * asked.size)
        alpha, got, gains = _search(asked, z, first, target, tolerance, rounds)
    coords = {k: v for k, v in directions.coords.items() if v.dims == ("feature",)}
    gain = label(gains, ("feature", "list", "prompt"), {"list": list(lists)})
    out = xr.Dataset(
        {
            "gain": gain.drop_attrs(),
            "alpha": ("feature", alpha.numpy()),
            "share": ("feature", alpha.numpy() / asked.size),
            "kl": ("feature", got.numpy()),
            "reached": ("feature", ((got / target).log().abs() <= np.log1p(tolerance)).numpy()),
        },
        coords={**coords, "text": ("prompt", list(prompts))},
    )
    return out.assign_attrs(provenance(model, layer=at, target=target, n=len(prompts)))


def _check(
    model: Model,
    directions: xr.DataArray,
    layer: int,
    lists: Mapping[str, Sequence[int]],
    target: float,
) -> torch.Tensor:
    model.anatomy.require(["neurons", "logits"])
    model.anatomy.layers(layer)
    if model.anatomy.down is None:
        raise MissingSite(f"{model.name}: no one matrix reads the neurons here")
    z = matrix(directions, "steer", rows="feature").float()
    if z.shape[1] != model.d_mlp:
        raise BadInput(f"directions of {z.shape[1]} neurons; {model.name} has {model.d_mlp}")
    length = z.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        dead = (length[:, 0] == 0).nonzero().flatten().tolist()
        raise BadInput(f"features {dead} have no direction (all zero): they cannot be added")
    if not lists or (empty := [k for k, v in lists.items() if not len(v)]):
        raise BadInput(
            f"list {empty[0]!r} has no token: its words are no single tokens here; give words that "
            "are, or leave it out"
            if lists
            else "lists is empty: name -> token ids"
        )
    for name, ids in lists.items():
        if min(ids) < 0 or max(ids) >= (model.d_vocab or 0):
            raise BadInput(f"list {name!r} has ids outside the vocabulary of {model.d_vocab}")
    if not target > 0:
        raise BadInput(f"target={target}: a divergence above zero, in nats")
    return (z / length).to(model.device)


class _Asked:
    """Prompts opened at one layer, and what is measured of them: KL, and log p of lists."""

    def __init__(
        self, model: Model, ends: list[Blocks], layer: int, ids: list[torch.Tensor]
    ) -> None:
        self.model, self.ends, self.layer, self.ids = model, ends, layer, ids
        self.base = [self.logits(b.streams[-1])[0] for b in ends]
        norms: list[float] = []
        for b in ends:
            with pushed(model, layer, torch.zeros(1, int(model.d_mlp or 0))) as seen:
                b.block(layer, b.streams[layer].clone())
            norms += seen
        if not norms:
            raise NoFiring(f"nothing passed through the neurons of layer {layer}")
        self.size = float(np.mean(norms))

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        return self.model.unembed(h[:, -1]).float().cpu()

    def lists(self, logits: torch.Tensor) -> torch.Tensor:
        """Log of the sum of probabilities of each list, [rows, lists]."""
        p = logits.log_softmax(-1)
        return torch.stack([p[:, i].logsumexp(-1) for i in self.ids], 1)

    def run(self, push: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean KL [rows] and gains [rows, lists, prompts] with push[i] added to the neurons."""
        kls, gains = [], []
        for some in torch.split(
            push, 32
        ):  # so that memory does not grow with the number of directions
            each, gain = [], []
            for b, base in zip(self.ends, self.base):
                h = b.streams[self.layer].expand(len(some), -1, -1).clone()
                with pushed(self.model, self.layer, some):
                    h = b.block(self.layer, h)
                for above in range(self.layer + 1, self.model.n_layers):
                    h = b.block(above, h)
                z = self.logits(h)
                each.append(kl(base, z))
                gain.append(self.lists(z) - self.lists(base[None]))
            kls.append(torch.stack(each, 1).mean(1))
            gains.append(torch.stack(gain, 2))
        return torch.cat(kls), torch.cat(gains)


def _search(
    asked: _Asked, z: torch.Tensor, alpha: torch.Tensor, target: float, tolerance: float,
    rounds: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Solve KL(alpha) = target for each row: log KL is nearly linear in log alpha, so by secants.

    Returns alpha, KL [rows] and gains [rows, lists, prompts] of the nearest run of each.
    """
    n, goal = len(z), float(np.log(target))
    low, high = torch.full((n,), -torch.inf), torch.full((n,), torch.inf)
    x, best = alpha.log(), torch.full((n,), torch.inf)
    past_x, past_y = torch.full((n,), torch.nan), torch.full((n,), torch.nan)
    out_x, out_kl = x.clone(), torch.zeros(n)
    out = torch.zeros(n, len(asked.ids), len(asked.ends))
    left = torch.arange(n)
    for _ in range(rounds):
        divergence, gains = asked.run(x[left].exp()[:, None].to(z) * z[left.to(z.device)])
        y, at = divergence.clamp(min=1e-12).log(), x[left]
        nearer = (y - goal).abs() < best[left]
        rows = left[nearer]
        best[rows], out_x[rows] = (y - goal).abs()[nearer], at[nearer]
        out_kl[rows], out[rows] = divergence[nearer], gains[nearer]
        low[left] = torch.where(y < goal, torch.maximum(low[left], at), low[left])
        high[left] = torch.where(y > goal, torch.minimum(high[left], at), high[left])
        # The secant through the last two points; to begin with KL is square in alpha.
        rise = (y - past_y[left]) / (at - past_x[left])
        rise = torch.where(torch.isfinite(rise) & (rise > 0.5), rise, torch.full_like(rise, 2.0))
        past_x[left], past_y[left] = at, y
        new = at + ((goal - y) / rise).clamp(-1.5, 1.5)
        middle = (low[left] + high[left]) / 2
        outside = torch.isfinite(middle) & ((new <= low[left]) | (new >= high[left]))
        x[left] = torch.where(outside, middle, new)
        left = left[best[left] > np.log1p(tolerance)]
        if not len(left):
            break
    return out_x.exp(), out_kl, out


@contextlib.contextmanager
def pushed(model: Model, layer: int, push: torch.Tensor) -> Iterator[list[float]]:
    """While inside, add push[i] to the neurons of row i; mean norms met before that are noted."""
    assert model.anatomy.down is not None
    module = model.module.get_submodule(model.anatomy.down.replace("{}", str(layer)))
    seen: list[float] = []

    def before(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = args[0]
        # OPT hands its MLP [rows * positions, neurons]
        own = given.reshape(len(push), -1, given.shape[-1])
        seen.append(float(own.float().norm(dim=-1).mean()))
        return ((own + push[:, None].to(own)).reshape(given.shape), *args[1:])

    hook = module.register_forward_pre_hook(before)
    try:
        yield seen
    finally:
        hook.remove()
