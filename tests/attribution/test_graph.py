"""The graph of edges: who sends, who reads, what there is between them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from reference import DECODERS

from lwlab.attribution.circuits import Graph
from lwlab.errors import BadInput, MissingSite, UnknownName


def test_nodes_are_named_in_the_order_of_the_forward_pass() -> None:
    g = Graph(2, 2, 1)
    assert g.sender_names == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert g.receiver_names == (
        "a0.h0<q>", "a0.h1<q>", "a0.kv0<k>", "a0.kv0<v>", "m0",
        "a1.h0<q>", "a1.h1<q>", "a1.kv0<k>", "a1.kv0<v>", "m1", "logits",
    )  # fmt: skip
    assert Graph(2, 2, 1, mlps=False).sender_names == ("input", "a0.h0", "a0.h1", "a1.h0", "a1.h1")


@pytest.mark.parametrize(
    ("layers", "heads", "groups", "parallel", "mlps"),
    [(3, 4, 2, False, True), (2, 3, 3, True, True), (2, 6, 2, False, False), (1, 1, 1, True, True)],
)
def test_an_edge_goes_from_what_was_written_to_what_is_read_later(
    layers: int, heads: int, groups: int, parallel: bool, mlps: bool
) -> None:
    g = Graph(layers, heads, groups, parallel, mlps)
    for (i, s), (j, r) in product(enumerate(g.senders), enumerate(g.receivers)):
        if s.kind == "input" or r.kind == "logits" or s.layer < r.layer:
            expected = True
        elif s.layer > r.layer:
            expected = False
        else:  # only a serial MLP reads its own layer, and there only the heads
            expected = r.kind == "mlp" and s.kind == "head" and not parallel
        assert g.exists[i, j] == expected, (s, r)
    slots = heads + 2 * groups
    writers = heads + mlps
    count = sum((1 + writers * i) * slots for i in range(layers)) + 1 + writers * layers
    own = 0 if parallel else heads
    count += sum(1 + writers * i + own for i in range(layers)) if mlps else 0
    assert g.n_edges == count == len(list(g.edges()))


def test_a_receiver_feeds_the_heads_of_its_group() -> None:
    g = Graph(2, 4, 2)

    def fed(name: str) -> list[str]:
        row = g.feeds[g.receiver(name)]
        return [g.sender_names[i] for i in np.nonzero(row)[0]]

    assert fed("a1.h2<q>") == ["a1.h2"]
    assert fed("a1.kv1<k>") == fed("a1.kv1<v>") == ["a1.h2", "a1.h3"]
    assert fed("m0") == ["m0"]
    assert fed("logits") == []
    assert not g.feeds[:, g.sender("input")].any()


def test_edges_by_name() -> None:
    g = Graph(2, 2, 2)
    table = g.mask(["a0.h1->m1", ("input", "logits")])
    assert list(g.edges(table)) == [("input", "logits"), ("a0.h1", "m1")]
    with pytest.raises(UnknownName, match=r"no sender 'a0\.h7'"):
        g.mask(["a0.h7->m1"])
    with pytest.raises(UnknownName, match="no receiver 'm9'"):
        g.receiver("m9")
    with pytest.raises(BadInput, match=r"no edge m1 -> a0\.h0<q>"):
        g.mask([("m1", "a0.h0<q>")])
    with pytest.raises(BadInput, match="write it as"):
        g.mask(["m1"])


def test_sizes_must_make_a_model() -> None:
    for sizes in ((0, 1, 1), (1, 4, 3), (1, 2, 0)):
        with pytest.raises(BadInput, match="no graph of"):
            Graph(*sizes)


@pytest.mark.parametrize("arch", DECODERS)
def test_every_decoder_has_its_graph_or_says_why_not(arch: str, toy: Any) -> None:
    model = toy(arch)
    if arch == "opt_post_norm":
        with pytest.raises(BadInput, match="normalises the stream itself"):
            Graph.of(model)
    elif arch == "mamba":
        with pytest.raises(MissingSite, match="state-space mixer"):
            Graph.of(model)
    else:
        g = Graph.of(model)
        assert (g.n_layers, g.n_heads, g.n_kv_heads) == (3, 4, model.n_kv_heads)
        assert g.parallel == (arch in ("gpt_neox", "phi"))
        coords = g.coords()
        assert len(coords["sender"]) == len(coords["sender_kind"][1]) == len(g.senders)
