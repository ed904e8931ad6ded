"""LiNeS: equal to a loop over weights written out; the ends of the line are the two models."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.merging import combine, elect, lines, measure, sizes, ties, vectors
from lwlab.models import toys
from lwlab.models.toys.merging_tunes import KINDS, text_of


def nudged(model: lw.Model, seed: int, size: float = 0.05) -> lw.Model:
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data += size * torch.randn(p.shape, generator=generator)
    return lw.wrap(module, model.anatomy, model.tokenizer, name=f"nudged {seed}", check=False)


def weights(model: lw.Model) -> dict[str, torch.Tensor]:
    return dict(model.module.named_parameters())


def gap(a: lw.Model, b: lw.Model) -> float:
    x, y = weights(a), weights(b)
    assert set(x) == set(y)
    return max(float((x[n] - y[n]).detach().abs().max()) for n in x)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "gemma2", "bert", "vit"])
def test_a_line_equals_a_loop_over_the_weights(arch: str, toy: Any) -> None:
    base = toy(arch)
    tuned = nudged(base, 1)
    got = weights(lines.scaled(vectors(base, {"t": tuned}), 0.25))
    start, end, depth = weights(base), weights(tuned), base.n_layers
    outside = 0
    for n, w in got.items():
        number = re.search(r"\.(?:layers|h|layer)\.(\d+)\.", f".{n}")
        outside += number is None
        scale = 0.25 if number is None else 0.25 + 0.75 * int(number[1]) / (depth - 1)
        expected = start[n] + scale * (end[n] - start[n])
        torch.testing.assert_close(w, expected, atol=1e-6, rtol=0)
    assert outside
    assert outside < len(got)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_ends_are_the_two_models_and_alpha_zero_keeps_first_and_last_block(
    arch: str, toy: Any
) -> None:
    base = toy(arch)
    tuned = nudged(base, 2)
    v = vectors(base, {"t": tuned})
    assert gap(lines.scaled(v, 1.0), tuned) < 1e-7
    assert gap(combine(v, lines.profile(base.n_layers, 0, 0)), base) == 0
    got, start, end = (weights(m) for m in (lines.scaled(v, 0.0), base, tuned))
    for n in v.tensors:
        if v.layer[n] in (-1, 0):
            assert torch.equal(got[n], start[n])
        if v.layer[n] == base.n_layers - 1:
            torch.testing.assert_close(got[n], end[n], atol=1e-7, rtol=0)
    assert gap(lines.scaled(v, 0.0), tuned) > 1e-3


def test_a_sum_starts_its_line_at_the_mean_of_the_models(toy: Any) -> None:
    base = toy("llama")
    tuned = {f"t{i}": nudged(base, i) for i in range(3)}
    v = vectors(base, tuned)
    assert lines.alpha_of(v) == 1 / 3
    flat = weights(lines.merge(v, 0.0))
    every = [weights(m) for m in tuned.values()]
    for n, w in flat.items():
        torch.testing.assert_close(w, sum(e[n] for e in every) / 3, atol=1e-6, rtol=0)
    # By its definition as a ratio of sizes, for a merge that is no sum.
    one = ties(v, 0.3).tau["ties"]
    top = sum(float(sum(v.tau[k][n] for k in v.tasks).abs().sum()) for n in v.tensors)
    bottom = sum(float(one[n].abs().sum()) for n in v.tensors)
    assert lines.alpha_of(v, "ties", 0.3) == pytest.approx(top / bottom / 3, rel=1e-5)


def test_ties_equals_a_loop_over_single_weights(toy: Any) -> None:
    base = toy("llama")
    v = vectors(base, {f"t{i}": nudged(base, i) for i in range(3)})
    flat = np.stack([np.concatenate([t[n].numpy().ravel() for n in v.tensors])
                     for t in v.tau.values()])  # fmt: skip
    k = round(0.2 * flat.shape[1])
    for row in flat:
        row[np.argsort(np.abs(row))[:-k]] = 0
    expected = np.zeros(flat.shape[1])
    for j in range(0, flat.shape[1], 7):
        column = flat[:, j].astype(float)
        voters = [x for x in column if x and math.copysign(1, x) == np.sign(column.sum())]
        expected[j] = np.mean(voters) if voters else 0.0
    got = np.concatenate([ties(v).tau["ties"][n].numpy().ravel() for n in v.tensors])
    np.testing.assert_allclose(got[::7], expected[::7], atol=1e-7)
    left = elect(v).tau["t1"]
    assert 0 < sum(int((t != 0).sum()) for t in left.values()) <= k


def test_profiles_have_the_same_numbers_in_other_places() -> None:
    line = lines.profile(5, 0.2)
    np.testing.assert_allclose(line.values, [0.2, 0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(
        lines.profile(5, 0.2, shape="reversed").values, [0.2, 1.0, 0.8, 0.6, 0.4, 0.2]
    )
    np.testing.assert_allclose(lines.profile(5, 0.2, shape="uniform").values, 0.6)
    mixed = lines.profile(5, 0.2, shape="random", seed=3).values
    assert sorted(mixed[1:]) == pytest.approx(sorted(line.values[1:]))
    np.testing.assert_allclose(lines.profile(3, 0.5, 2.0).values, [0.5, 0.5, 1.5, 2.5])


def test_a_random_profile_changes_as_much_as_the_line(toy: Any) -> None:
    base = toy("llama")
    v = vectors(base, {"t": nudged(base, 4)})
    norms = []
    for shape in ("lines", "random"):
        w, start = weights(lines.scaled(v, 0.1, shape=shape, seed=1)), weights(base)
        norms.append(math.sqrt(sum(float(((w[n] - start[n]).detach() ** 2).sum()) for n in w)))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_sizes_and_what_is_left_of_them(toy: Any) -> None:
    base = toy("gpt2")
    v = vectors(base, {"a": nudged(base, 1), "b": nudged(base, 2, 0.1)})
    size = sizes(v)
    assert size.dims == ("task", "layer")
    second = [t for n, t in v.tau["b"].items() if n.startswith("transformer.h.1.")]
    by_hand = sum(float((t**2).sum()) for t in second)
    assert float(size.sel(task="b", layer=1)) == pytest.approx(math.sqrt(by_hand), rel=1e-5)
    left = lines.describe(v, lines.profile(base.n_layers, 0.5)).left
    assert float(left.sel(task="a", layer=-1)) == pytest.approx(
        0.5 * float(size.sel(task="a", layer=-1))
    )


def test_measuring_equals_the_models_own_loss(toy: Any) -> None:
    model = toy("llama")
    ids = torch.randint(3, 20, (5, 9), generator=torch.Generator().manual_seed(0))
    found = measure(model, {"x": ids}, batch_size=2)
    for i, row in enumerate(ids):
        own = float(model.module(input_ids=row[None], labels=row[None]).loss)
        assert float(found.loss[0, i]) == pytest.approx(own, abs=1e-5)
    z = model.module(input_ids=ids).logits[:, :-1]
    entropy = torch.distributions.Categorical(logits=z).entropy().mean(1).detach()
    np.testing.assert_allclose(found.entropy[0].values, entropy, atol=1e-5)


def test_merging_leaves_the_models_alone_and_the_merged_one_is_a_model(toy: Any) -> None:
    base = toy("llama")
    tuned = nudged(base, 1)
    before = [{n: w.detach().clone() for n, w in weights(m).items()} for m in (base, tuned)]
    merged = lines.merge(vectors(base, {"t": tuned}), 0.5)
    lw.cache(merged, "Mary and John", "resid_post")
    for m, old in zip((base, tuned), before, strict=True):
        assert all(torch.equal(w, old[n]) for n, w in weights(m).items())
    assert "lines of sum" in merged.name
    assert lw.generate(merged, "Mary", max_new_tokens=2) is not None


def test_models_that_do_not_fit_are_refused_by_the_name_of_the_weights(toy: Any) -> None:
    base = toy("llama")
    with pytest.raises(BadInput, match="give at least one"):
        vectors(base, {})
    with pytest.raises(BadInput, match=r"'x' is no fine-tune of llama: .* is in"):
        vectors(base, {"x": toy("gpt2")})
    other = nudged(base, 1)
    name = next(n for n in weights(other) if n.endswith("up_proj.weight"))
    path, _, leaf = name.rpartition(".")
    wide = torch.nn.Parameter(torch.zeros(3, 4))
    setattr(other.module.get_submodule(path), leaf, wide)
    with pytest.raises(BadInput, match=r"up_proj.weight has shape \(3, 4\), the base's has"):
        vectors(base, {"x": other})
    broken = nudged(base, 1)
    next(iter(broken.module.parameters())).data[0] = math.nan
    with pytest.raises(BadInput, match=r"task 'x', nudged 1: .* not finite"):
        vectors(base, {"x": broken})


def test_coefficients_that_cannot_be_used_are_refused(toy: Any) -> None:
    base = toy("llama")
    v = vectors(base, {"a": nudged(base, 1), "b": nudged(base, 2)})
    for bad in (math.nan, math.inf, {"a": 1.0, "b": math.nan}):
        with pytest.raises(BadInput, match="not all finite"):
            combine(v, bad)
    with pytest.raises(BadInput, match="no coefficient is given for b"):
        combine(v, {"a": 1.0})
    with pytest.raises(UnknownName, match="no task 'c'"):
        combine(v, {"a": 1.0, "b": 1.0, "c": 1.0})
    with pytest.raises(BadInput, match="step is none of task, layer, tensor"):
        combine(v, xr.DataArray([1.0], dims="step"))
    with pytest.raises(BadInput, match="leave something out"):
        combine(v, lines.profile(base.n_layers, 0.5).isel(layer=slice(1, None)))
    with pytest.raises(BadInput, match="merge takes several"):
        lines.scaled(v, 0.5)
    with pytest.raises(BadInput, match="finite"):
        lines.merge(v, math.inf)
    with pytest.raises(BadInput, match="two blocks"):
        lines.profile(1, 0.5)
    with pytest.raises(UnknownName, match="'line'; did you mean 'lines'"):
        lines.profile(4, 0.5, shape="line")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no way to merge 'tie'"):
        lines.merge(v, 0.5, how="tie")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="a share above 0"):
        ties(v, 0.0)
    with pytest.raises(UnknownName, match="no task 'z'"):
        v.only("z")


def test_texts_that_cannot_be_read_are_refused(toy: Any) -> None:
    ids = torch.ones(2, 5, dtype=torch.long)
    model = toy("llama")
    for bad, why in (
        ({}, "empty"),
        ({"x": ids[0]}, "wanted"),
        ({"x": ids.float()}, "wanted"),
        ({"x": ids + 10**6}, "outside the"),
        ({"x": ids, "y": ids[:1]}, "differ in size"),
    ):
        with pytest.raises(BadInput, match=why):
            measure(model, bad)
    with pytest.raises(BadInput, match="need a decoder"):
        measure(toy("bert"), {"x": ids})


@pytest.mark.slow
def test_fine_tunes_forget_and_a_line_forgets_less_than_its_mirror_image() -> None:
    base = lw.load("toys/char-llama")
    generator = torch.Generator().manual_seed(1)
    texts = {
        k: toys.char_gpt2.stretches(text_of(k, base.tokenizer)[1], 16, 128, generator)
        for k in KINDS
    }
    for kind in ("upper", "reversed", "code"):
        v = vectors(base, {kind: lw.load(f"toys/char-llama-{kind}")})
        two = {k: texts[k] for k in ("plain", kind)}

        def loss(model: lw.Model, two: Any = two) -> np.ndarray:
            return measure(model, two).loss.mean("text").values

        before, after = loss(base), loss(combine(v, 1.0))
        assert after[1] < before[1] - 0.2  # it learned the task
        assert after[0] > before[0] + 0.1  # and forgot the text it came from
        line, mirror = loss(lines.scaled(v, 0.2)), loss(lines.scaled(v, 0.2, shape="reversed"))
        assert line[0] < mirror[0]


def test_kinds_of_text_are_what_they_say() -> None:
    tokenizer = toys.characters()
    plain, upper, mirror = (
        tokenizer.decode(text_of(k, tokenizer)[1]) for k in ("plain", "upper", "reversed")
    )
    assert upper == plain.upper()
    assert len(mirror) == len(plain)
    assert mirror.split()[3].strip(".,:;()\"'")[::-1] in plain
    assert "def " in tokenizer.decode(text_of("code", tokenizer)[0])
    with pytest.raises(UnknownName, match="no kind of text 'uper'; did you mean 'upper'"):
        text_of("uper", tokenizer)
