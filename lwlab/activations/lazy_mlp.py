"""Rectified networks of two layers, trained in a second: what width, labels and top-k do.

The paper's controls (arXiv:2210.06313): labels drawn at random, inputs drawn at random, wider
layers; and the top-k network, which keeps the k largest of its rectified neurons by force.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from lwlab.errors import BadInput, Diverged
from lwlab.results import provenance

PAPER = "2210.06313"


def top_k(a: Tensor, k: int) -> Tensor:
    """Keep the k largest entries of `a` along the last dimension and put the rest to nought.

    Gradients flow through the kept entries alone; k equal to the size gives `a` back. Of equal
    entries, the ones torch.topk picks. Raises BadInput for a k outside 1..size.
    """
    size = a.shape[-1] if a.ndim else 0
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise BadInput(f"k={k!r}: of {size} neurons, k is a whole number from 1 to {size}")
    if k == size:
        return a
    return a * torch.zeros_like(a).scatter_(-1, a.topk(k, dim=-1).indices, 1.0)


class TwoLayer(nn.Module):
    """logits = W_2 top_k(relu(W_1 x + b_1)) + b_2; k None keeps all."""

    def __init__(self, inputs: int, width: int, classes: int, k: int | None = None) -> None:
        super().__init__()
        if k is not None:
            top_k(torch.zeros(width), k)
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, classes)
        self.k = k

    def neurons(self, x: Tensor) -> Tensor:
        """Return the activations [n, width] of x [n, inputs]."""
        a = self.first(x).relu()
        return a if self.k is None else top_k(a, self.k)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes]."""
        out: Tensor = self.second(self.neurons(x))
        return out


def noisy(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """Return labels of which a `share`, chosen at random, was drawn anew from 0..max evenly.

    A redrawn label may be the old one, so a little less than `share` is wrong; 1 gives random
    labels. Raises BadInput for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise BadInput(f"share={share}: a fraction from 0 to 1 of the labels to draw anew")
    g = torch.Generator().manual_seed(seed)
    which = torch.randperm(len(labels), generator=g)[: round(share * len(labels))]
    out = labels.clone()
    out[which] = torch.randint(int(labels.max()) + 1, (len(which),), generator=g)
    return out


def train_two_layer(
    x: Tensor,
    y: Tensor,
    *,
    width: int = 512,
    k: int | None = None,
    epochs: int = 40,
    batch: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
    test: tuple[Tensor, Tensor] | None = None,
) -> xr.Dataset:
    """Train a two-layer rectified network on x [n, inputs] with labels y [n], by Adam.

    Returns over (epoch), 0 being before training: `nonzero`, the share of neurons that are not
    nought at an input, mean over x; `loss` (cross-entropy in nats on x); and the numbers `fitted`,
    the accuracy on x, and, with `test`, `accuracy` there. Repeatable by `seed`; torch's generator
    stays as it was. Raises BadInput for shapes that do not fit, a width, batch or number of epochs
    below 1, or a k outside 1..width; Diverged when the loss stops being a number.
    """
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise BadInput(f"x {tuple(x.shape)} and y {tuple(y.shape)}: give [n, inputs] and [n]")
    if min(width, batch, epochs) < 1:
        raise BadInput(f"width={width}, batch={batch}, epochs={epochs}: one or more of each")
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = TwoLayer(x.shape[1], width, int(y.max()) + 1, k)
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        course = [_numbers(net, x, y)]
        for _ in range(epochs):
            for part in torch.split(torch.randperm(len(x), generator=g), batch):
                optimizer.zero_grad()
                functional.cross_entropy(net(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            course.append(_numbers(net, x, y))
            if course[-1][1] != course[-1][1]:
                raise Diverged(f"the loss is no number after {len(course) - 1} epochs: lower rate=")
    with torch.no_grad():
        right = {"fitted": float((net(x).argmax(1) == y).float().mean())}
        if test is not None:
            right["accuracy"] = float((net(test[0]).argmax(1) == test[1]).float().mean())
    return xr.Dataset(
        {
            "nonzero": ("epoch", [c[0] for c in course]),
            "loss": ("epoch", [c[1] for c in course]),
            **right,
        },
        {"epoch": range(len(course))},
        provenance(technique="lazy-neuron", paper=PAPER, seed=seed, n=len(x), width=width, k=k),
    )


@torch.no_grad()
def _numbers(net: TwoLayer, x: Tensor, y: Tensor) -> tuple[float, float]:
    a = net.neurons(x)
    return float((a != 0).float().mean()), float(functional.cross_entropy(net.second(a), y))
