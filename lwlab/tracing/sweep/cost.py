"""What a sweep costs, by closed formula: rows, floating-point operations, bytes."""

from __future__ import annotations

from lwlab.models.model import Model
from lwlab.models.sites import SITES

#: Sites whose value at a token reaches other tokens only through the next layer.
LOCAL = frozenset(
    ("q", "head_out", "attn_out", "resid_mid", "mlp_in", "mlp_gate", "mlp_up", "neurons", "mlp_out")
) | {"resid_post"}


def projections(model: Model) -> tuple[int, int, int, int]:
    """Operations of one row: (queries, keys and values, output of attention, MLP).

    2 d_model H d_head, 4 d_model G d_head, 2 H d_head d_model, and 2 d_model d_mlp for each of the
    MLP's two matrices, or three with a gate; 0 for what the anatomy does not size.
    """
    a = model.anatomy
    d, width, kv = a.d_model or 0, (a.n_heads or 0) * (a.d_head or 0), a.n_kv_heads or 0
    mlp = 2 * d * (a.d_mlp or 0) * (3 if a.gated else 2)
    return 2 * d * width, 4 * d * kv * (a.d_head or 0), 2 * width * d, mlp


def attention(model: Model, length: int) -> int:
    """Operations of one query row against `length` keys: 4 H d_head length."""
    a = model.anatomy
    return 4 * (a.n_heads or 0) * (a.d_head or 0) * length


def block_flops(model: Model, length: int) -> int:
    """Matrix-product operations of one block on one prompt."""
    return length * (sum(projections(model)) + attention(model, length))


def forward_flops(model: Model, length: int, columns: int) -> int:
    """Operations of a forward pass of one prompt, `columns` tokens unembedded at its end."""
    return model.n_layers * block_flops(model, length) + 2 * (model.d_model or 0) * columns


def packed_cost(
    model: Model, site: str, layer: int, length: int, position: int, columns: int
) -> tuple[int, int]:
    """(rows, operations) of one cell in the packed engine.

    With m = length - position rows, Q, K, O, M the four of `projections`, A one row's attention and
    L layers, a copy that joins at layer j costs R + m (A + O + M) + (L - 2 - j) m (Q + K + A + O +
    M) + m K + Q + A + O + M, and for j = L - 1 R + A + O + M: R = Q + K for a stream or attn_in, 0
    for k and v. Other sites cost one row, from the site on, and join as a stream at j = layer + 1.
    Where one product makes q, k and v, the last layer takes m (Q + K).
    """
    a, n, m = model.anatomy, model.n_layers, length - position
    q, kv, o, mlp = projections(model)
    att = attention(model, length)
    fused = a.taps["q"].path == a.taps["k"].path
    rows, flops = 0, 2 * (a.d_model or 0) * columns
    if site in LOCAL:
        rows += 1
        if layer < n - 1 or m == 1:
            flops += _one_row(model, site, att)
        layer += 1
        if layer == n:
            return rows, flops
        flops += q + kv
    elif site in ("resid_pre", "attn_in"):
        flops += q + kv
    rows += m * (n - layer)
    if layer == n - 1:
        return rows, flops + att + o + mlp
    flops += m * (att + o + mlp) + (n - 2 - layer) * m * (q + kv + att + o + mlp)
    flops += m * (q + kv) if fused else m * kv + q
    return rows, flops + att + o + mlp


def _one_row(model: Model, site: str, att: int) -> int:
    _, _, o, mlp = projections(model)
    serial = 0 if model.anatomy.parallel else mlp
    down = 2 * (model.anatomy.d_mlp or 0) * (model.d_model or 0)
    costs = {"q": att + o + serial, "head_out": o + serial, "attn_out": serial, "resid_mid": mlp}
    costs |= dict.fromkeys(("mlp_gate", "mlp_up", "neurons"), down) | {"mlp_in": mlp}
    return costs.get(site, 0)


def forward_bytes(model: Model, length: int) -> int:
    """What a prompt's pass through a block holds on its way, about: MLP, streams, scores."""
    a = model.anatomy
    width = 3 * (a.d_mlp or 4 * (a.d_model or 1)) + 6 * (a.d_model or 1)
    return length * (width + length * (a.n_heads or 0)) * model.dtype.itemsize


def resume_bytes(model: Model, length: int) -> int:
    """What a copy of a prompt holds in the resume engine: its streams, and its way through."""
    streams = 3 * length * (model.d_model or 1) * model.dtype.itemsize
    return streams + forward_bytes(model, length) // 4


def site_bytes(model: Model, site: str) -> int:
    """Bytes of one token of one layer at a site."""
    a = model.anatomy
    width = {
        "d_model": a.d_model, "neuron": a.d_mlp, "d_head": a.d_head, "head": a.n_heads,
        "kv_head": a.n_kv_heads,
    }  # fmt: skip
    total = model.dtype.itemsize
    for d in SITES[site].dims[1:]:
        total *= width[d] or 1
    return total
