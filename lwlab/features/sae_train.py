"""A small TopK sparse autoencoder, trained here on activations at hand."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lwlab.errors import BadInput
from lwlab.features.sae import Code, decode, dense, encode


class SAE(NamedTuple):
    """A TopK autoencoder: x_hat = b_dec + z W_dec, z the k largest of relu((x - b_dec) W_enc').

    w_enc, w_dec [m, d] (rows of w_dec have length 1), b_enc [m], b_dec [d], k; `losses` [steps],
    the mean square error of each batch over the variance of the data.
    """

    w_enc: torch.Tensor
    b_enc: torch.Tensor
    w_dec: torch.Tensor
    b_dec: torch.Tensor
    k: int
    losses: torch.Tensor

    def encode(self, x: torch.Tensor) -> Code:
        """The features of rows x [n, d]."""
        return encode(x, self.w_enc, self.b_enc, self.k, self.b_dec)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The features of rows x [n, d] as a matrix [n, m]."""
        return dense(self.encode(x))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rows as the autoencoder rebuilds them, [n, d]."""
        return decode(self.encode(x), self.w_dec, self.b_dec)


def train(
    x: torch.Tensor,
    width: int,
    k: int,
    *,
    steps: int = 1000,
    batch: int = 128,
    lr: float = 3e-3,
    revive: int = 100,
    seed: int = 0,
) -> SAE:
    """Train a TopK autoencoder of `width` features, k of them active, on rows x [n, d].

    Loss |x - x_hat|^2 by Adam on batches drawn by `seed`, the learning rate falling to nothing in
    the last fifth; decoder rows are kept at length 1, their gradients orthogonal to them. The data
    are scaled to mean norm sqrt(d) meanwhile. b_dec starts at the mean; features start as (centred)
    rows of the data, and one that was not active for `revive` steps starts again as the row that is
    rebuilt worst. (TopK autoencoders: Gao et al. 2024, arXiv:2406.04093.)

    Raises BadInput for rows that are not finite, k outside 1..width, or settings that cannot work.
    """
    if x.ndim != 2 or not x.numel() or not bool(torch.isfinite(x).all()):
        raise BadInput(f"train needs finite rows [n, d]; got shape {tuple(x.shape)}, or NaN in it")
    if not 1 <= k <= width:
        raise BadInput(f"k={k} active features of width={width}; take 1 <= k <= width")
    if steps < 1 or batch < 1 or lr <= 0:
        raise BadInput(f"steps={steps}, batch={batch}, lr={lr}: they must be positive")
    gen = torch.Generator().manual_seed(seed)
    x = x.detach().float()
    mean = x.mean(0)
    scale = x.shape[1] ** 0.5 / float((x - mean).norm(dim=1).mean().clamp(min=1e-12))
    data = x * scale
    b_dec = (mean * scale).clone()
    chosen = torch.randint(len(x), (width,), generator=gen)
    noise = torch.randn(width, x.shape[1], generator=gen)
    w_dec = _unit(data[chosen] - b_dec + 0.1 * noise)
    w_enc, b_enc = w_dec.clone(), torch.zeros(width)
    weights = [w_enc, b_enc, w_dec, b_dec]
    for w in weights:
        w.requires_grad_(True)
    adam = torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda t: min(1.0, 5 * (1 - t / steps)))
    variance = float((data - data.mean(0)).pow(2).sum(1).mean().clamp(min=1e-12))
    idle = torch.zeros(width, dtype=torch.long)
    losses = torch.empty(steps)
    for t in range(steps):
        rows = data[torch.randint(len(x), (min(batch, len(x)),), generator=gen)]
        with torch.enable_grad():
            code = encode(rows, w_enc, b_enc, k, b_dec)
            each = (rows - decode(code, w_dec, b_dec)).pow(2).sum(1)
            loss = each.mean() / variance
        grads = torch.autograd.grad(loss, weights)
        for w, g in zip(weights, grads):
            w.grad = g
        with torch.no_grad():
            assert w_dec.grad is not None
            w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec
            adam.step()
            falling.step()
            w_dec.copy_(_unit(w_dec))
            idle += 1
            idle[code.ids[code.values > 0]] = 0
            dead = (idle >= revive).nonzero().flatten()
            if len(dead) and t < 0.8 * steps:
                dead = dead[: len(rows)]
                worst = rows[each.topk(len(dead)).indices] - b_dec
                w_dec[dead] = _unit(worst)
                w_enc[dead], b_enc[dead], idle[dead] = w_dec[dead], 0.0, 0
        losses[t] = loss.detach()
    done = [w.detach() for w in weights]
    return SAE(done[0], done[1] / scale, done[2], done[3] / scale, k, losses)


def _unit(w: torch.Tensor) -> torch.Tensor:
    return w / w.norm(dim=1, keepdim=True).clamp(min=1e-12)
