"""Every engine gives what one forward pass a cell gives, in every architecture, at every site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import DECODERS
from sweep_by_hand import LeftPadded, all_sites, check_cells, ioi, uneven

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models import toys
from lwlab.tracing.sweep import adapter, cost

Toy = Callable[[str], lw.Model]
PACKED = [
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox",
    "gpt_neox_sequential", "opt", "phi", "olmo", "olmo2",
]  # fmt: skip
RESUMED = [a for a in (*DECODERS, "bert_mlm") if a not in PACKED]


def close(a: Any, b: Any, sites: list[str], atol: float = 1e-5) -> None:
    for s in sites:
        np.testing.assert_allclose(a[s].values, b[s].values, atol=atol, err_msg=s)


@pytest.mark.parametrize("arch", [*DECODERS, "bert_mlm"])
def test_all_sites_equal_a_forward_with_plain_hooks(arch: str, toy: Toy) -> None:
    model = toy(arch)
    task, sites = ioi(model), all_sites(model)
    got = lw.sweep(model, task, sites, skip=False, neuron_blocks=3)
    assert got.attrs["engine"] == ("packed" if arch in PACKED else "resume")
    assert got.attrs["skipped"] == 0
    for site in sites:
        assert np.isfinite(got[site].values).all()
        assert np.abs(got[site].values).max() > 1e-4
        check_cells(model, task, got, site, 2)


@pytest.mark.parametrize("arch", [*PACKED, "opt_post_norm", "mamba"])
def test_engines_agree_in_every_cell_and_skipping_changes_none(arch: str, toy: Toy) -> None:
    model = toy(arch)
    task, sites = ioi(model), all_sites(model)
    resumed = lw.sweep(model, task, sites, skip=False, neuron_blocks=3, engine="resume")
    if arch in PACKED:
        packed = lw.sweep(model, task, sites, skip=False, neuron_blocks=3, engine="packed")
        close(packed, resumed, sites)
    skipped = lw.sweep(model, task, sites, neuron_blocks=3)
    close(skipped, resumed, sites)
    assert 0.5 < skipped.attrs["skipped"] / skipped.attrs["cells"] < 1
    some = {"layers": [1], "positions": [9, -1]}
    for s in ("resid_pre", "resid_post"):
        plain = lw.sweep(model, task, s, skip=False, engine="plain", **some)  # type: ignore[arg-type]
        part = resumed[s].sel(layer=[1]).isel(position=[9, -1])
        np.testing.assert_allclose(plain[s].values, part.values, atol=1e-5)
        assert plain.attrs["engine"] == "plain"


def test_what_comes_before_the_first_changed_token_is_zero_to_the_bit(toy: Toy) -> None:
    model = toy("llama")
    task = ioi(model)
    got = lw.sweep(model, task, ["resid_pre", "head_out"])
    first = int(task.positions["S2"].min())
    assert (got.resid_pre.values[:, :, :first] == 0).all()
    assert (got.head_out.values[:, :, :first] == 0).all()
    assert (got.resid_pre.values[:, 0, first + 1 :] == 0).all()  # layer 0, equal tokens
    assert (
        got.head_out.values[:, -1, :-1] == 0
    ).all()  # nobody reads the last layer but at the end


@pytest.mark.parametrize("kind", [None, LeftPadded])
@pytest.mark.parametrize("engine", ["packed", "resume", "plain"])
def test_prompts_of_unequal_length_are_swept_as_if_alone(kind: Any, engine: Any, toy: Toy) -> None:
    model = toy("llama")
    task = uneven(model, kind) if kind else uneven(model)
    sites = ["resid_pre", "head_out", "k"]
    layers = [1] if engine == "plain" else None
    got = lw.sweep(model, task, sites, skip=False, engine=engine, layers=layers)
    lengths = task.lengths.tolist()
    for i, t in enumerate(lengths):
        alone = lw.sweep(model, task.subset([i]), sites, skip=False, engine=engine, layers=layers)
        for s in sites:
            np.testing.assert_allclose(got[s].values[i, :, :t], alone[s].values[0], atol=1e-5)
            assert np.isnan(got[s].values[i, :, t:]).all()
    assert got.token_str.values[0].tolist()[lengths[0] :] == [""] * (max(lengths) - lengths[0])
    check_cells(model, task, got, "resid_pre", 3)


def test_named_and_negative_positions_are_each_prompts_own(toy: Toy) -> None:
    model = toy("qwen3")
    task = uneven(model)
    whole = lw.sweep(model, task, "mlp_out", skip=False)
    part = lw.sweep(model, task, "mlp_out", skip=False, positions=["name", -1])
    assert part.position.values.tolist() == ["name", "-1"]
    for i, t in enumerate(task.lengths.tolist()):
        want = whole.mlp_out.values[i][:, [int(task.positions["name"][i]), t - 1]]
        np.testing.assert_allclose(part.mlp_out.values[i], want, atol=1e-6)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_rows_and_operations_are_those_of_the_formula(arch: str, toy: Toy) -> None:
    model = toy(arch)
    task = uneven(model)
    for site in all_sites(model):
        for skip in (False, True):
            got = lw.sweep(model, task, site, skip=skip, neuron_blocks=2)
            plan = lw.sweep_plan(model, task, site, skip=skip, neuron_blocks=2)
            assert (plan.rows, plan.flops) == (got.attrs["rows"], got.attrs["flops"])
            assert plan.cells - plan.skipped == got.attrs["cells"] - got.attrs["skipped"]
            assert plan.engine == "packed"
            assert plan.seconds > 0


@pytest.mark.parametrize("engine", ["resume", "plain"])
def test_other_engines_count_what_they_say(engine: Any, toy: Toy) -> None:
    model = toy("llama")
    given: dict[str, Any] = {"layers": [1], "positions": -1, "engine": engine, "skip": False}
    got = lw.sweep(model, uneven(model), "v", **given)
    plan = lw.sweep_plan(model, uneven(model), "v", **given)
    assert (plan.rows, plan.flops) == (got.attrs["rows"], got.attrs["flops"])
    assert plan.flops > 0


def test_the_formula_is_the_arithmetic_of_the_suffix(toy: Toy) -> None:
    model = toy("llama")  # d 32, 4 heads and 2 key/value heads of 8, 40 neurons, gated
    q, kv, o, mlp = 2 * 32 * 32, 2 * 32 * 32, 2 * 32 * 32, 2 * 3 * 32 * 40
    assert cost.projections(model) == (q, kv, o, mlp)
    att, read = 4 * 32 * 10, 2 * 32 * 2
    row = q + kv + att + o + mlp
    # layer 0, position 7 of 10: 3 rows; layer 0 projects one, layer 2 keys, values and the last row
    want = (q + kv) + 3 * (att + o + mlp) + 3 * row + 3 * kv + q + att + o + mlp + read
    assert cost.packed_cost(model, "resid_pre", 0, 10, 7, 2) == (9, want)
    assert cost.packed_cost(model, "v", 2, 10, 7, 2) == (3, att + o + mlp + read)
    assert cost.packed_cost(model, "mlp_out", 2, 10, 9, 2) == (1, read)
    assert (
        cost.packed_cost(model, "resid_post", 0, 10, 7, 2)[1]
        == (cost.packed_cost(model, "resid_pre", 1, 10, 7, 2)[1])
    )


def test_a_sweep_takes_far_fewer_operations_than_a_forward_a_cell(toy: Toy) -> None:
    model = toy("llama")
    task = ioi(model, 4)
    plan = lw.sweep_plan(model, task, skip=False)
    assert plan.naive_flops > 2.5 * plan.flops
    assert lw.sweep_plan(model, task).flops < plan.flops / 2


@pytest.mark.parametrize("packs", [1, 40])
def test_how_rows_are_packed_changes_nothing(packs: int, toy: Toy, monkeypatch: Any) -> None:
    from lwlab.tracing.sweep import packed

    model = toy("llama")
    task = uneven(model)
    sites = ["resid_pre", "v", "mlp_out"]
    whole = lw.sweep(model, task, sites, skip=False)
    monkeypatch.setattr(packed, "_PACK", packs)
    monkeypatch.setattr(packed, "_TILE", 7)
    close(lw.sweep(model, task, sites, skip=False), whole, sites)


def test_softcapped_attention_takes_the_packed_engine_where_it_is_really_capped() -> None:
    module, _ = toys.tiny("gemma2")
    module.set_attn_implementation("eager")  # type: ignore[operator]
    model = lw.wrap(module, tokenizer=toys.tokenizer(), name="capped")
    task, sites = ioi(model), ["resid_pre", "q", "v", "attn_out"]
    packed = lw.sweep(model, task, sites, skip=False, engine="packed")
    close(packed, lw.sweep(model, task, sites, skip=False, engine="resume"), sites)
    without = lw.sweep(model, task, sites, skip=False, engine="plain", layers=[1], positions=[9])
    close(packed.sel(layer=[1]).isel(position=[9]), without, sites)


def test_an_adapter_that_is_wrong_is_found_out_and_not_used(monkeypatch: Any) -> None:
    wrong = adapter.Row(("llama",), norm_1="post_attention_layernorm")
    monkeypatch.setattr(adapter, "ROWS", (wrong,))
    module, _ = toys.tiny("llama", seed=3)
    model = lw.wrap(module, tokenizer=toys.tokenizer(), name="llama")
    task = ioi(model)
    got = lw.sweep(model, task, layers=[1], skip=False)
    assert got.attrs["engine"] == "resume"
    assert "gives another stream" in got.attrs["engine_reason"]
    check_cells(model, task, got, "resid_pre", 2)
    with pytest.raises(BadInput, match="gives another stream"):
        lw.sweep(model, task, layers=[1], engine="packed")


def test_blocks_that_keep_a_state_take_the_plain_engine(monkeypatch: Any) -> None:
    module, _ = toys.tiny("mixtral", seed=4)
    model = lw.wrap(module, tokenizer=toys.tokenizer(), name="stateful")
    task = ioi(model)
    plain = lw.sweep(model, task, layers=[1], positions=-1, engine="plain", skip=False)

    def moody(*_: Any) -> None:
        raise BadInput("block 0 run again gives another result")

    monkeypatch.setattr("lwlab.tracing.blocks.verify", moody)
    got = lw.sweep(model, task, layers=[1], positions=-1, skip=False)
    assert got.attrs["engine"] == "plain"
    assert "gives another result" in got.attrs["engine_reason"]
    np.testing.assert_allclose(got.resid_pre.values, plain.resid_pre.values, atol=1e-6)


def test_metrics_of_the_whole_vocabulary_are_read_from_all_of_it(toy: Toy) -> None:
    model = toy("gemma2")
    for measure in ("logit_diff", "prob_diff", "log_prob"):
        task = ioi(model).with_metric(measure)
        check_cells(model, task, lw.sweep(model, task, "v"), "v", 3)


def test_float64_and_bfloat16_models_are_swept_in_their_own_type() -> None:
    for dtype, atol in ((torch.float64, 1e-12), (torch.bfloat16, 0.1)):
        model = lw.wrap(toys.tiny("llama")[0].to(dtype), tokenizer=toys.tokenizer(), name="l")
        task = ioi(model)
        packed = lw.sweep(model, task, skip=False)
        assert packed.attrs["engine"] == "packed"
        resumed = lw.sweep(model, task, skip=False, engine="resume")
        np.testing.assert_allclose(packed.resid_pre.values, resumed.resid_pre.values, atol=atol)
