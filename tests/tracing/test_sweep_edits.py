"""Edits of a sweep, by their definitions; what is refused; what is kept when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sweep_by_hand import check_cells, ioi, one_cell, uneven

import lwlab as lw
from lwlab.errors import BadInput, MissingSite, NoFiring, UnknownName
from lwlab.models.sites import Address
from lwlab.tracing import engine
from lwlab.tracing.sweep import packed, resume
from lwlab.tracing.sweep.job import Job
from lwlab.tracing.sweep.request import check

Toy = Callable[[str], lw.Model]
SITES = ["resid_pre", "head_out", "k", "neurons"]


def values(model: lw.Model, prompts: Any, site: str, layer: int) -> torch.Tensor:
    at = Address(site, layer)
    return engine.run(model, prompts, [at], logits=None).values[at]


@pytest.mark.parametrize("into", ["clean", "corrupt"])
def test_patching_goes_both_ways(into: Any, toy: Toy) -> None:
    model = toy("llama")
    task = uneven(model)
    got = lw.sweep(model, task, SITES, into=into, neuron_blocks=3)
    assert got.attrs["into"] == into
    for site in SITES:
        check_cells(model, task, got, site, 3, into=into)
    with torch.no_grad():
        tokens = task.tokens(model, into)
        z = engine.run(model, tokens).logits
    assert z is not None
    np.testing.assert_allclose(got.base_metric.values, task.metric(z).numpy(), atol=1e-5)


def test_the_only_changed_token_of_layer_zero_is_the_whole_effect_in_both_directions(
    toy: Toy,
) -> None:
    model = toy("gpt2")
    task = uneven(model)
    there = lw.sweep(model, task, layers=0, positions="name", into="corrupt")
    back = lw.sweep(model, task, layers=0, positions="name", into="clean")
    gap = back.base_metric - there.base_metric
    np.testing.assert_allclose(there.resid_pre.values.ravel(), gap.values, atol=1e-5)
    np.testing.assert_allclose(back.resid_pre.values.ravel(), -gap.values, atol=1e-5)


@pytest.mark.parametrize("engine", ["packed", "resume"])
def test_zero_ablation_of_the_clean_run(engine: Any, toy: Toy) -> None:
    model = toy("llama")
    task = uneven(model)
    got = lw.sweep(model, task, SITES, edit="zero", engine=engine, neuron_blocks=3)
    assert got.attrs["into"] == "clean"
    assert got.attrs["skipped"] < got.attrs["cells"] / 3
    for site in SITES:
        check_cells(model, task, got, site, 3, new=torch.zeros_like, into="clean")


def test_mean_ablation_takes_the_mean_of_the_reference(toy: Toy) -> None:
    model = toy("llama")
    task, reference = uneven(model), ["the dog saw the cat", "John went to Paris ."]
    got = lw.sweep(model, task, ["v", "attn_out"], edit="mean", reference=reference, layers=1)
    mask = model.tokens(reference).mask.bool()
    mean = values(model, reference, "attn_out", 1)[mask].mean(0)
    check_cells(model, task, got, "attn_out", 4, new=lambda _: mean, into="clean")
    one = values(model, reference, "v", 1)[mask].mean(0)[1]
    cell = got.v.isel(prompt=0, layer=0, position=2, kv_head=1)
    want = one_cell(model, task, "v", 1, 2, 0, 1, lambda _: one, "clean")
    np.testing.assert_allclose(float(cell), want, atol=1e-5)
    own = lw.sweep(model, task, "attn_out", edit="mean", layers=1)
    tokens = task.tokens(model)
    mean = values(model, tokens, "attn_out", 1)[tokens.mask.bool()].mean(0)
    check_cells(model, task, own, "attn_out", 4, new=lambda _: mean, into="clean")


def test_resampling_takes_another_prompts_value_at_the_same_position(toy: Toy) -> None:
    model = toy("llama")
    task = ioi(model, 4)
    got = lw.sweep(model, task, "resid_mid", edit="resample", layers=1, seed=5)
    donors = values(model, task.tokens(model), "resid_mid", 1)
    for i in range(4):
        found = []
        for j in range(4):
            want = one_cell(
                model, task, "resid_mid", 1, 7, i, None, lambda _, j=j: donors[j, 7], "clean"
            )
            found.append(abs(want - float(got.resid_mid[i, 0, 7])) < 1e-5)
        assert not found[i]
        assert sum(found) >= 1
    again = lw.sweep(model, task, "resid_mid", edit="resample", layers=1, seed=5)
    assert again.resid_mid.equals(got.resid_mid)


def test_noise_is_seeded_scaled_by_the_cell_and_the_same_however_prompts_are_chunked(
    toy: Toy,
) -> None:
    model = toy("llama")
    task = uneven(model)
    arguments: dict[str, Any] = {"edit": "noise", "layers": [0, 2], "seed": 7}
    got = lw.sweep(model, task, ["resid_pre", "q"], **arguments)
    small = lw.sweep(model, task, ["resid_pre", "q"], memory=120e3, **arguments)
    for s in ("resid_pre", "q"):
        np.testing.assert_allclose(small[s].values, got[s].values, atol=1e-5)
        other = lw.sweep(model, task, s, **{**arguments, "seed": 8})
        assert float(np.nanmax(np.abs(other[s] - got[s]))) > 1e-3
        gentle = lw.sweep(model, task, s, scale=1e-3, **arguments)
        assert float(np.nanmax(np.abs(gentle[s]))) < 0.05 * float(np.nanmax(np.abs(got[s])))


def test_a_function_gets_cells_and_gives_cells(toy: Toy) -> None:
    model = toy("llama")
    task = uneven(model)
    seen = []

    def half(cells: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(cells.shape))
        return cells / 2

    got = lw.sweep(model, task, SITES, edit=half, layers=[1], neuron_blocks=4)
    assert got.attrs["edit"].endswith("half")
    tokens = int(task.lengths.sum())
    assert set(seen) == {(tokens, 32), (tokens, 8), (tokens, 10)}
    check_cells(model, task, got, "head_out", 4, new=lambda v: v / 2, into="clean")
    check_cells(model, task, got, "resid_pre", 4, new=lambda v: v / 2, into="clean")
    for skip in (True, False):
        with pytest.raises(NoFiring, match="nothing changes"):
            lw.sweep(model, task, edit=lambda cells: cells, layers=[1], skip=skip)
    with pytest.raises(BadInput, match="must return new values of that shape"):
        lw.sweep(model, task, edit=lambda cells: cells[0], layers=[1])
    with pytest.raises(BadInput, match="NaN"):
        lw.sweep(model, task, edit=lambda cells: cells * float("nan"), layers=[1])


def test_an_edit_whose_module_is_not_called_is_an_error(monkeypatch: Any) -> None:
    module, _ = lw.models.toys.tiny("mixtral", seed=9)
    model = lw.wrap(module, tokenizer=lw.models.toys.tokenizer(), name="m")
    task = ioi(model)

    def deaf(*_: Any) -> Any:
        return torch.nn.Identity().register_forward_hook(lambda *_: None)

    monkeypatch.setattr(resume, "_hook", deaf)
    with pytest.raises(NoFiring, match="attn_out"):
        lw.sweep(model, task, "attn_out", layers=[1], engine="resume")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"sites": "resid_pro"}, UnknownName, "resid_pre"),
        ({"sites": "mixer_out"}, MissingSite, "state-space"),
        ({"sites": "attn_pattern"}, BadInput, "each layer and position"),
        ({"sites": "final_norm"}, BadInput, "each layer and position"),
        ({"layers": 7}, BadInput, "layer"),
        ({"layers": []}, BadInput, "empty"),
        ({"positions": 99}, BadInput, "out of range"),
        ({"positions": "S9"}, UnknownName, "S2"),
        ({"positions": []}, BadInput, "empty"),
        ({"heads": 0}, BadInput, "has heads"),
        ({"sites": "head_out", "heads": [4]}, BadInput, "0..3"),
        ({"sites": "k", "heads": 2}, BadInput, "0..1"),
        ({"sites": "neurons", "neuron_blocks": 41}, BadInput, "1 to 40"),
        ({"edit": "zap"}, UnknownName, "zero"),
        ({"edit": 3.0}, BadInput, "function"),
        ({"into": "both"}, BadInput, "into"),
        ({"edit": "zero", "reference": "the dog"}, BadInput, "reference"),
        ({"edit": "resample", "reference": ["the dog"]}, BadInput, "as long"),
        ({"engine": "fast"}, UnknownName, "packed"),
        ({"memory": 1000}, BadInput, "too small"),
        ({"memory": -1}, BadInput, "bytes"),
    ],
)
def test_bad_input_is_refused_before_a_run(
    arguments: Any, error: Any, match: str, toy: Toy, monkeypatch: Any
) -> None:
    model = toy("llama")
    task = ioi(model)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was run")

    monkeypatch.setattr(engine, "run", never)
    for function in (lw.sweep, lw.sweep_plan):
        with pytest.raises(error, match=match):
            function(model, task, **arguments)


def test_tasks_and_models_that_do_not_fit_are_refused(toy: Toy) -> None:
    model = toy("llama")
    task = uneven(model)
    longer = replace(task, corrupt=(task.corrupt[0] + " the", *task.corrupt[1:]))
    with pytest.raises(BadInput, match="equally many tokens"):
        lw.sweep(model, longer)
    with pytest.raises(BadInput, match="equals its twin"):
        lw.sweep(model, replace(task, corrupt=task.clean))
    with pytest.raises(BadInput, match="resample ablation needs prompts of equal length"):
        lw.sweep(model, task, edit="resample")
    with pytest.raises(BadInput, match="needs a task"):
        lw.sweep(model, "the dog saw")  # type: ignore[arg-type]
    for name in ("bert", "t5:decoder"):
        with pytest.raises(BadInput, match=r"logits of tokens|one stack"):
            lw.sweep(toy(name), task)
    with pytest.raises(BadInput, match="no adapter for mixtral"):
        lw.sweep(toy("mixtral"), task, engine="packed")


def test_a_metric_must_give_one_finite_number_a_prompt(toy: Toy) -> None:
    model = toy("llama")
    task = ioi(model)

    class Odd(type(task)):  # type: ignore[misc]
        @property
        def metric(self) -> Any:
            return self.attrs["f"]

    for f, match in ((lambda z: z.mean(), "one number"), (lambda z: z[:, 0] * float("nan"), "NaN")):
        odd = Odd(**{**vars(task), "attrs": {"f": f}})
        with pytest.raises(BadInput, match=match):
            lw.sweep(model, odd)


def test_an_interrupted_sweep_keeps_what_is_done_and_goes_on_from_its_file(
    toy: Toy, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(packed, "_PACK", 40)
    model = toy("llama")
    task = uneven(model)
    whole = lw.sweep(model, task, skip=False)
    file = tmp_path / "sweep.npz"
    told: list[tuple[float, float]] = []

    def stop(done: float, total: float) -> None:
        told.append((done, total))
        if done > 0.5 * total:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        part = lw.sweep(model, task, skip=False, progress=stop, resume=file)
    assert part.attrs["complete"] is False
    done = np.isfinite(part.resid_pre.values)
    assert 0.1 < done.sum() / np.isfinite(whole.resid_pre.values).sum() < 0.9
    np.testing.assert_allclose(part.resid_pre.values[done], whole.resid_pre.values[done], atol=1e-6)
    rest = lw.sweep(model, task, skip=False, resume=file)
    assert rest.attrs["complete"] is True
    assert rest.attrs["flops"] < 0.9 * whole.attrs["flops"]
    np.testing.assert_allclose(rest.resid_pre.values, whole.resid_pre.values, atol=1e-6)
    again = lw.sweep(model, task, skip=False, resume=file)
    assert again.attrs["flops"] == 0
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(BadInput, match="another sweep"):
        lw.sweep(model, task, skip=False, resume=file, into="clean")
    with pytest.raises(BadInput, match="another sweep"):
        lw.sweep(toy("qwen2"), task, skip=False, resume=file)
    file.write_bytes(b"no")
    with pytest.raises(BadInput, match="not a sweep's file"):
        lw.sweep(model, task, skip=False, resume=file)


def test_progress_ends_at_its_total(toy: Toy, capsys: Any) -> None:
    model = toy("llama")
    told: list[tuple[float, float]] = []
    lw.sweep(model, ioi(model), "q", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == pytest.approx(told[-1][1], rel=1e-9)
    assert [d for d, _ in told] == sorted(d for d, _ in told)
    lw.sweep(model, ioi(model), "q", progress=True)
    assert "100%" in capsys.readouterr().err


def test_a_result_says_what_it_is(toy: Toy, tmp_path: Path) -> None:
    model = toy("llama")
    task = ioi(model, 4)
    got = lw.sweep(model, task, ["resid_pre", "k", "neurons"], neuron_blocks=5, layers=[0, 2])
    assert got.resid_pre.dims == ("prompt", "layer", "position")
    assert got.k.dims == ("prompt", "layer", "position", "kv_head")
    assert got.neurons.dims == ("prompt", "layer", "position", "neuron_block")
    assert got.layer.values.tolist() == [0, 2]
    assert got.group.values.tolist() == task.groups.tolist()
    about = got.attrs
    assert about["model"] == "llama"
    assert about["metric"] == "logit_diff"
    assert about["cells"] == 4 * 2 * 14 * (1 + 2 + 5)
    assert about["engine_reason"]
    mean = got.lw.interval()
    assert mean.resid_pre.dims == ("layer", "position", "estimate")
    lw.save(got, tmp_path / "a.nc")
    assert lw.open(tmp_path / "a.nc").identical(got)
    some = lw.sweep(model, task, "k", heads=[-1])
    assert some.kv_head.values.tolist() == [1]
    np.testing.assert_allclose(some.k.sel(layer=[0, 2]).values, got.k.values[..., 1:], atol=1e-6)


@pytest.mark.parametrize("engine", ["packed", "resume", "plain"])
def test_a_site_can_be_edited_whole(engine: Any, toy: Toy) -> None:
    model = toy("qwen3")
    task = uneven(model)
    sites = ["q", "k", "v", "head_out", "neurons"]
    got = lw.sweep(
        model, task, sites, layers=[1], positions=["name", -1], split=False, engine=engine
    )
    for site in sites:
        assert got[site].dims == ("prompt", "layer", "position")
        for i, t in enumerate(task.lengths.tolist()):
            for j, p in enumerate((int(task.positions["name"][i]), t - 1)):
                want = one_cell(model, task, site, 1, p, i, None, "patch")
                np.testing.assert_allclose(float(got[site][i, 0, j]), want, atol=1e-5)


def test_prompts_are_taken_as_many_at_a_time_as_the_budget_holds(toy: Toy) -> None:
    model = toy("llama")
    task = uneven(model)

    def job(memory: float) -> Job:
        asked = check(
            model, task, "v", None, None, None, "patch", None, None, memory, 1, True, True, 0, 1.0
        )
        return Job(asked, "packed", None)

    assert len(job(512e6).chunks) == 1
    assert [c.tolist() for c in job(72e3).chunks] == [[0, 2], [1]]
    whole = lw.sweep(model, task, "v")
    small = lw.sweep(model, task, "v", memory=72e3)
    np.testing.assert_allclose(small.v.values, whole.v.values, atol=1e-6)
