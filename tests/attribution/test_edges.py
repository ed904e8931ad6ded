"""Edge scores: equal to plain autograd with a stream for every receiver; their identities."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from edges_by_hand import Wired
from reference import RULED
from torch import nn

import lwlab as lw
from lwlab.attribution import Pair, edges, nodes, relp
from lwlab.attribution.wiring import Wiring
from lwlab.models.sites import Address
from lwlab.tracing import engine

PLAIN = [a for a in RULED if a != "opt_post_norm"]


def ask(task: Any, i: int) -> Any:
    """The logit difference of prompt i."""
    return lambda z: z[task.answer_ids[i]] - z[task.foil_ids[i]]


def by_hand(model: lw.Model, task: Any, rules: tuple[str, ...] = (), ways: Any = None) -> Any:
    net, graph = Wired(model.module, rules), Wiring(model).graph
    clean, corrupt = task.tokens(model).ids, task.tokens(model, "corrupt").ids
    out = np.zeros((len(task), *graph.exists.shape))
    for i in range(len(task)):
        held = ways(net, clean[i], corrupt[i]) if ways else [(None, None)]
        for senders, hold in held:
            s = net.scores(clean[i], corrupt[i], graph, ask(task, i), hold, senders)
            out[i] += s.numpy()
    return out


def agree(found: Any, expected: Any) -> None:
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found.values, expected, atol=2e-5 * max(1.0, scale))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_eap_is_autograd_with_a_stream_for_every_receiver(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    found = edges.scores(model, task, normalise=False)
    assert found.dims == ("prompt", "sender", "receiver")
    agree(found, by_hand(model, task))


@pytest.mark.parametrize("rules", [relp.RULES, relp.EVERY, ("ln",)], ids="+".join)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_relp_edges_follow_rules_written_out(arch: str, rules: Any, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    found = edges.scores(model, task, "relp", rules=rules, normalise=False)
    agree(found, by_hand(model, task, rules))
    queries = found.sel(receiver=found.receiver_kind.isin(["q", "k"]))
    assert bool((queries == 0).all()) == ("attention" in rules)


def on_the_way(a: Any, b: Any, steps: int) -> list[Any]:
    """Outputs held at the midpoints of the way from b to a, for the senders in both."""
    points = [(k + 0.5) / steps for k in range(steps)]
    return [{s: torch.lerp(b[s], a[s], t) for s in a} for t in points]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_eap_ig_averages_autograd_on_the_way_of_the_input(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)

    def ways(net: Wired, clean: Any, corrupt: Any) -> Any:
        with torch.no_grad():
            a, b = (net.wired(ids, {})[0] for ids in (clean, corrupt))
        return [(None, on_the_way({"input": a["input"]}, {"input": b["input"]}, 3))]

    found = edges.scores(model, task, "eap-ig-inputs", steps=3, tolerance=None, normalise=False)
    agree(found, by_hand(model, task, ways=ways))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_eap_ig_averages_autograd_on_the_way_of_each_sublayer(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    task = task.subset([0, 2])

    def ways(net: Wired, clean: Any, corrupt: Any) -> Any:
        with torch.no_grad():
            a, b = (net.wired(ids, {})[0] for ids in (clean, corrupt))
        stages = [["input"]]
        for i in range(model.n_layers):
            stages += [[f"a{i}.h{h}" for h in range(model.n_heads or 0)], [f"m{i}"]]
        return [
            (stage, on_the_way({s: a[s] for s in stage}, {s: b[s] for s in stage}, 2))
            for stage in stages
        ]

    found = edges.scores(
        model, task, "eap-ig-activations", steps=2, tolerance=None, normalise=False
    )
    agree(found, by_hand(model, task, ways=ways))


@pytest.mark.parametrize("arch", [*PLAIN, "mixtral", "qwen2_moe"])
def test_receivers_gradients_add_up_to_the_senders(arch: str, toy_ioi: Any) -> None:
    """Before any product: sum over later receivers of what they take = the gradient there."""
    model, task = toy_ioi(arch)
    wiring, pair = Wiring(model), Pair.of(model, task)
    graph, rows = wiring.graph, torch.arange(len(task))
    at = [Address("resid_pre", 0)]
    at += [Address(s, i) for i in range(model.n_layers) for s in ("attn_out", "mlp_out")]
    data = pair.batch(pair.corrupt, rows)
    trace = engine.run(model, data, [*wiring.takes(wiring.blocks), *at], grad=True)
    metric = pair.metric(rows, trace.logits)
    whole = torch.autograd.grad(metric.sum(), [trace.values[a] for a in at], retain_graph=True)
    taken = torch.zeros(len(graph.receivers), *whole[0].shape)
    for block, g in wiring.pull(trace.values, metric, wiring.blocks):
        taken[wiring.columns(block)] = g
    for address, g in zip(at, whole):
        name = {"resid_pre": "input", "attn_out": f"a{address.layer}.h0"}.get(
            address.site, f"m{address.layer}"
        )
        later = torch.from_numpy(graph.exists[graph.sender(name)])
        assert float(g.norm()) > 0
        torch.testing.assert_close(taken[later].sum(0), g, rtol=1e-4, atol=1e-6)


PAIRS = [("eap", "atp"), ("relp", "relp"), *((f"eap-{t}", t) for t in nodes.TECHNIQUES[1:3])]


@pytest.mark.parametrize(("edge", "node"), PAIRS)
@pytest.mark.parametrize("arch", PLAIN)
def test_a_node_is_the_sum_of_its_outgoing_edges(
    arch: str, edge: str, node: str, toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    given: dict[str, Any] = {"normalise": False, "steps": 2, "tolerance": None}
    out = edges.scores(model, task, edge, **given).sum("receiver")
    one = nodes.scores(model, task, node, **given)
    assert float(np.abs(one).max()) > 1e-3
    np.testing.assert_allclose(out.values, one.values, atol=3e-6)


@pytest.mark.parametrize("arch", PLAIN)
def test_senders_add_up_to_the_stream(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    wiring, last = Wiring(model), Address("resid_post", model.n_layers - 1)
    runs = [
        engine.run(model, task.tokens(model, which), [*wiring.sends, last]).values
        for which in ("clean", "corrupt")
    ]
    gap = runs[0][last] - runs[1][last]
    torch.testing.assert_close(
        wiring.delta(runs[0], runs[1]).sum(1), gap, rtol=1e-4, atol=2e-5
    )  # biases are sent by nobody and are in both runs


def linear(toy: Any) -> lw.Model:
    """GPT-2 without norms, activation or queries: every layer is linear in its input."""
    module = copy.deepcopy(toy("gpt2").module)
    for b in module.transformer.h:
        b.ln_1, b.ln_2, b.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
        with torch.no_grad():
            b.attn.c_attn.weight[:, :32] = 0
            b.attn.c_attn.bias[:32] = 0
    module.transformer.ln_f = nn.Identity()
    return lw.wrap(module, tokenizer=toy("gpt2").tokenizer, name="linear")


class Line(Wired):
    """The same by hand."""

    def norm(self, m: Any, x: Any) -> Any:
        return x

    def f(self, x: Any) -> Any:
        return x


def test_in_a_linear_model_scores_are_exact_effects(toy: Any, toy_ioi: Any) -> None:
    model, task = linear(toy), toy_ioi("gpt2")[1]
    graph, net = Wiring(model).graph, Line(model.module)
    clean, corrupt = task.tokens(model).ids, task.tokens(model, "corrupt").ids
    found = edges.scores(model, task, ["eap", "relp", "eap-ig-inputs"], normalise=False)
    assert found.gap.values.max() < 1e-4
    table = graph.exists & np.isin([n.kind for n in graph.receivers], ["v", "mlp", "logits"])
    for i in (0, 3):
        expected = np.zeros(table.shape)
        for s, r in zip(*np.nonzero(table)):
            edge = graph.sender_names[s], graph.receiver_names[r]
            expected[s, r] = net.effect(clean[i], corrupt[i], edge, ask(task, i))
        for technique in found.technique.values:
            agree(found.sel(technique=technique).isel(prompt=i), expected)


def expanded(model: lw.Model) -> lw.Model:
    """The same model with a key and value of its own for every query head."""
    config = copy.deepcopy(model.module.config)
    group = config.num_attention_heads // config.num_key_value_heads
    config.num_key_value_heads = config.num_attention_heads
    state = model.module.state_dict()
    for name, w in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = w.unflatten(0, (config.num_attention_heads // group, -1))
            state[name] = heads.repeat_interleave(group, 0).flatten(0, 1)
    module = type(model.module)(config).eval()
    module.load_state_dict(state)
    return lw.wrap(module, tokenizer=model.tokenizer, name="expanded")


@pytest.mark.parametrize("technique", edges.TECHNIQUES)
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2"])
def test_grouped_keys_are_the_sum_of_their_heads_keys(
    arch: str, technique: str, toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    given: dict[str, Any] = {"technique": technique, "normalise": False, "tolerance": None}
    ours = edges.scores(model, task, steps=2, **given)
    full = edges.scores(expanded(model), task, steps=2, **given)
    group = (model.n_heads or 1) // (model.n_kv_heads or 1)
    assert group == 2
    for r in ours.receiver.values:
        name = str(r)
        heads = [name]
        if ".kv" in name:
            layer, rest = name.split(".kv")
            g, kind = int(rest[0]), rest[1:]
            heads = [f"{layer}.kv{g * group + j}{kind}" for j in range(group)]
        total = full.sel(receiver=heads).sum("receiver")
        np.testing.assert_allclose(ours.sel(receiver=r).values, total.values, atol=3e-6)


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_half_precision_gives_the_same_edges_roughly(arch: str, toy: Any, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    half = lw.wrap(copy.deepcopy(model.module).bfloat16(), tokenizer=model.tokenizer, name="half")
    given: dict[str, Any] = {"technique": ["eap", "eap-ig-inputs"], "tolerance": None}
    ours, theirs = (edges.scores(m, task, normalise=False, **given) for m in (half, model))
    assert ours.dtype == np.float32
    assert float(xr.corr(ours, theirs)) > 0.99
