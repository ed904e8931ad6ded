"""`patch` and `ablate` against one plain forward pass with torch hooks for each edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from reference import EVERY, PROMPTS, forward

import lwlab as lw
from lwlab.errors import BadInput, LwlabError, MissingSite, NoFiring, UnknownName
from lwlab.models import toys
from lwlab.models.sites import SITES, Address
from lwlab.tracing import Edit, engine
from lwlab.tracing.pattern import exposed

Toy = Callable[[str], lw.Model]
PAIR = ["Mary went to the old house", "John took the red book home"]


def inputs(model: lw.Model) -> Any:
    if model.kind == "vision":
        return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    ids = torch.randint(4, 90, (2, 7), generator=torch.Generator().manual_seed(3))
    if model.kind == "encoder-decoder":
        return {"input_ids": ids, "decoder_input_ids": ids[:, 2:6]}
    return ids


def final(model: lw.Model) -> str:
    return "final_norm" if "final_norm" in model.sites() else "resid_post"


@pytest.mark.parametrize("name", EVERY)
def test_every_site_is_patched_as_by_a_hook(name: str, toy: Toy) -> None:
    """Bit for bit, in the logits (or the last stream), and the edit is seen to have fired."""
    model, x = toy(name), inputs(toy(name))
    g = torch.Generator().manual_seed(1)
    for site in model.sites():
        if site == "logits":
            continue
        at = Address(site, 1 if SITES[site].scope == "layer" else None)
        last = Address(final(model), model.n_layers - 1 if final(model) == "resid_post" else None)
        shift: torch.Tensor | None = None

        def change(old: torch.Tensor) -> torch.Tensor:
            nonlocal shift
            if shift is None:
                shift = torch.randn(old.shape, generator=g)
            return 0.5 * old.reshape(shift.shape) + shift

        def hook(old: torch.Tensor) -> torch.Tensor:
            return change(old).reshape(old.shape)

        got = engine.run(model, x, [last, at], [Edit(at, change)], logits="all")
        with torch.no_grad(), exposed(model.module, site == "attn_pattern"):
            z, want = forward(model, x, [last], {at: hook})
        assert torch.equal(got.values[last], want[last]), at
        if got.logits is not None:
            assert torch.equal(got.logits, z), at
        assert got.edits[0].fired == 1
        assert got.edits[0].change > 0.1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "gemma3", "bert_mlm"])
@pytest.mark.parametrize("site", ["q.1.3", "v.2.0", "head_out.0.2", "attn_pattern.1.1"])
def test_one_head_is_patched_and_the_others_stay(name: str, site: str, toy: Toy) -> None:
    model = toy(name)
    at = model.anatomy.address(site.replace(".3", ".1") if name in ("llama", "gemma3") else site)
    whole = Address(at.site, at.layer)
    axis = 1 if at.site == "attn_pattern" else 2

    def hook(old: torch.Tensor) -> torch.Tensor:
        new = old.clone()
        new.select(axis, at.head or 0).mul_(0.25)
        return new

    got = lw.patch(model, PAIR, {at: lambda head: 0.25 * head}, logits="all")
    with torch.no_grad(), exposed(model.module, at.site == "attn_pattern"):
        z, _ = forward(model, PAIR, edit={whole: hook})
    np.testing.assert_array_equal(got.logits, z)


def test_a_sweep_over_layers_and_positions_is_the_naive_loop(toy: Toy) -> None:
    """Corrupt into clean residual patching; also as rows of one batch."""
    model = toy("llama")
    clean = lw.cache(model, PAIR[0], "resid_pre").resid_pre
    n = clean.sizes["position"]
    for layer in range(model.n_layers):
        value = torch.tensor(clean.sel(layer=layer).values)
        rows = engine.run(
            model,
            torch.cat([model.tokens(PAIR[1]).ids] * n),
            edits=[
                Edit(
                    Address("resid_pre", layer),
                    value[0][:, None],
                    rows=torch.arange(n),
                    columns=torch.arange(n)[:, None],
                )
            ],
        ).logits
        assert rows is not None
        for p in range(n):

            def hook(old: torch.Tensor, p: int = p, value: torch.Tensor = value) -> torch.Tensor:
                new = old.clone()
                new[:, p] = value[:, p]
                return new

            with torch.no_grad():
                z, _ = forward(model, PAIR[1], edit={Address("resid_pre", layer): hook})
            got = lw.patch(model, PAIR[1], {f"resid_pre.{layer}": value[:, [p]]}, positions=p)
            np.testing.assert_allclose(got.logits, z[:, -1], atol=1e-5)
            np.testing.assert_allclose(rows[p], z[0, -1], atol=1e-5)


def test_several_edits_are_made_together_in_whatever_order_they_are_named(toy: Toy) -> None:
    model = toy("gemma2")
    edits: dict[str, Any] = {
        "mlp_out.2": lambda h: h + 1,
        "head_out.0.1": 0.0,
        "resid_mid.1": lambda h: 2 * h,
        "q.1": lambda h: -h,
        "embed": lambda h: h * 0.5,
    }
    hooks = {
        Address("embed"): lambda h: h * 0.5,
        Address("q", 1): lambda h: -h,
        Address("resid_mid", 1): lambda h: 2 * h,
        Address("mlp_out", 2): lambda h: h + 1,
    }

    def silent(old: torch.Tensor) -> torch.Tensor:
        new = old.clone()
        new[:, :, 1] = 0
        return new

    with torch.no_grad():
        z, _ = forward(model, PAIR, edit={**hooks, Address("head_out", 0): silent})
    for order in (list(edits), list(reversed(edits))):
        got = lw.patch(model, PAIR, {k: edits[k] for k in order}, logits="all")
        np.testing.assert_array_equal(got.logits, z)
        assert len(got.attrs["edits"]) == 5


def test_an_edit_at_one_reader_of_a_tensor_does_not_reach_the_others(toy: Toy) -> None:
    """OLMo 2's MLP reads the residual stream itself; both sites are at one module's input."""
    model = toy("olmo2")
    base = lw.cache(model, PAIR, ["resid_mid", "mlp_out", "resid_post"])
    got = lw.patch(model, PAIR, {"mlp_in.1": 0.0}, read=["resid_mid", "mlp_in", "mlp_out"])
    np.testing.assert_array_equal(got.resid_mid.sel(layer=1), base.resid_mid.sel(layer=1))
    assert float(abs(got.mlp_in.sel(layer=1)).max()) == 0.0
    both = lw.patch(
        model, PAIR, {"mlp_in.1": 0.0, "resid_mid.1": 1.0}, read=["resid_mid", "mlp_in"]
    )
    assert float(abs(both.resid_mid.sel(layer=1) - 1).max()) == 0.0
    assert float(abs(both.mlp_in.sel(layer=1)).max()) == 0.0


def test_what_cache_returns_can_be_patched_in_for_unequal_prompts_too(toy: Toy) -> None:
    model = toy("gpt2")
    for side in ("right", "left"):
        tokens = model.tokens(PROMPTS, side)  # type: ignore[arg-type]
        base = lw.cache(model, tokens, ["resid_pre", "head_out"])
        same = lw.patch(
            model, tokens,
            {"resid_pre.1": base.resid_pre.sel(layer=1), "head_out.2": base.head_out.sel(layer=2)},
        )  # fmt: skip
        assert float(same.moved.max()) == 0.0
        np.testing.assert_array_equal(same.logits, same.base_logits)


def test_the_values_given_are_never_written_to(toy: Toy) -> None:
    model = toy("gpt2")
    value = torch.ones(2, 6, 32)
    before = value.clone()

    def donor(old: torch.Tensor) -> torch.Tensor:
        return value

    lw.patch(model, PAIR, {"resid_pre.0": value, "resid_mid.1": value, "mlp_out.1": donor})
    assert torch.equal(value, before)

    def in_place(old: torch.Tensor) -> torch.Tensor:
        old[:, 0] = 0
        return old

    got = lw.patch(model, PAIR, {"resid_pre.1": in_place})
    assert "changed by" in got.attrs["edits"][0]
    assert "changed by 0 " not in got.attrs["edits"][0]


def test_moved_is_the_divergence_from_the_unedited_model(toy: Toy) -> None:
    model = toy("qwen3")
    got = lw.patch(model, PAIR, {"mlp_out.1": 0.0})
    p, q = (torch.tensor(got[k].values).log_softmax(-1) for k in ("base_logits", "logits"))
    np.testing.assert_allclose(got.moved, (p.exp() * (p - q)).sum(-1), rtol=1e-4)
    base = lw.cache(model, PAIR, "logits").logits
    np.testing.assert_allclose(got.base_logits, base.isel(position=-1), atol=1e-5)
    assert "moved" not in lw.patch(model, PAIR, {"mlp_out.1": 0.0}, compare=False)


def test_zero_mean_and_resample_do_what_their_names_say(toy: Toy) -> None:
    model = toy("llama")
    others = ["Tom saw the big green dog", "Anna gave nine ten war year", "the cat and it was old"]
    reference = lw.cache(model, others, "mlp_out").mlp_out.sel(layer=1)
    own = lw.cache(model, PAIR, "mlp_out").mlp_out.sel(layer=1)
    read: dict[str, Any] = {"read": "mlp_out", "layers": 1}

    zero = lw.ablate(model, PAIR, "mlp_out.1", **read).mlp_out[:, 0]
    assert float(abs(zero).max()) == 0.0
    mean = lw.ablate(model, PAIR, "mlp_out.1", "mean", reference=others, **read).mlp_out[:, 0]
    want = reference.mean(["prompt", "position"])
    np.testing.assert_allclose(mean, want.broadcast_like(mean), atol=1e-6)
    mean = lw.ablate(model, PAIR, "mlp_out.1", "mean", **read).mlp_out[:, 0]
    np.testing.assert_allclose(
        mean, own.mean(["prompt", "position"]).broadcast_like(mean), atol=1e-6
    )

    drawn = lw.ablate(model, PAIR, "mlp_out.1", "resample", reference=others, **read).mlp_out[:, 0]
    for row in drawn.values:
        assert min(abs(row - donor).max() for donor in reference.values) < 1e-6
    swapped = lw.ablate(model, PAIR, "mlp_out.1", "resample", **read).mlp_out[:, 0]
    np.testing.assert_allclose(swapped, own[::-1], atol=1e-6)  # of two, never itself
    at = lw.ablate(model, PAIR, "mlp_out.1", "resample", positions=[-1, 2], **read).mlp_out[:, 0]
    np.testing.assert_allclose(at[:, [2, -1]], own[::-1][:, [2, -1]], atol=1e-6)
    np.testing.assert_allclose(at[:, [0, 1, 3]], own[:, [0, 1, 3]], atol=1e-6)


def test_ablating_a_head_leaves_the_other_heads(toy: Toy) -> None:
    model = toy("llama")
    base = lw.cache(model, PAIR, "head_out").head_out.sel(layer=1)
    got = lw.ablate(model, PAIR, ["head_out.1.2"], "mean", read="head_out", layers=1).head_out[:, 0]
    np.testing.assert_array_equal(got.isel(head=[0, 1, 3]), base.isel(head=[0, 1, 3]))
    want = base.isel(head=2).mean(["prompt", "position"])
    np.testing.assert_allclose(got.isel(head=2), want.broadcast_like(got.isel(head=2)), atol=1e-6)


def test_resampling_depends_on_the_seed_alone(toy: Toy) -> None:
    model = toy("gpt2")
    many = [f"Mary saw the {w} dog" for w in ("old", "new", "big", "small", "red", "blue")]
    one, two, other = (
        lw.ablate(model, many, "attn_out.1", "resample", seed=s).logits for s in (0, 0, 1)
    )
    assert one.equals(two)
    assert not one.equals(other)


def test_a_vision_model_is_patched_in_the_same_way(toy: Toy) -> None:
    model = toy("vit")
    got = lw.ablate(model, inputs(model), ["head_out.1.0", "mlp_out.2"])
    assert got.logits.dims == ("prompt", "token")
    assert (got.moved > 1e-4).all()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(7), r"shape \(7,\) does not fit the selected part, \(2, 6, 32\)"),
        (torch.zeros(3, 6, 32), r"\(3, 6, 32\) does not fit"),
        (np.zeros((1, 2, 6, 32)), r"\(1, 2, 6, 32\) does not fit"),
        (float("nan"), "NaN or infinity"),
        (torch.full((32,), float("inf")), "NaN or infinity"),
        ("zero", "str is not a value; give a number, an array or a function"),
        (None, "NoneType is not a value"),
        ([[1.0], [2.0, 3.0]], "list is not a value"),
        (xr.DataArray(np.zeros((2, 5, 32))), r"\(2, 5, 32\) does not fit"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_before_the_run(
    value: Any, says: str, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy("gpt2")
    monkeypatch.setattr(engine, "_trace", None)  # running would fail
    with pytest.raises(BadInput, match=says) as caught:
        lw.patch(model, PAIR, {"resid_pre.1": value})
    assert "resid_pre.1" in str(caught.value)


def test_requests_that_cannot_work_are_refused_before_the_run(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bert = toy("gpt2"), toy("bert")
    monkeypatch.setattr(engine, "_trace", None)
    calls: list[tuple[type[LwlabError], str, Callable[[], Any]]] = [
        (BadInput, "no edits given", lambda: lw.patch(model, PAIR, {})),
        (UnknownName, "did you mean 'mlp_out'", lambda: lw.patch(model, PAIR, {"mlp_oot.1": 0.0})),
        (MissingSite, "no site 'mlp_gate'", lambda: lw.patch(model, PAIR, {"mlp_gate.1": 0.0})),
        (BadInput, "head is 0..3", lambda: lw.patch(model, PAIR, {"q.1.4": 0.0})),
        (BadInput, "which layer", lambda: lw.patch(model, PAIR, {"q": 0.0})),
        (BadInput, "logits are the output", lambda: lw.patch(model, PAIR, {"logits": 0.0})),
        (BadInput, "position 6 is out of range", lambda: lw.patch(
            model, PAIR, {"q.1": 0.0}, positions=[6])),
        (BadInput, "positions= does not apply to 'attn_pattern'", lambda: lw.patch(
            model, PAIR, {"attn_pattern.1": 0.0}, positions=[0])),
        (UnknownName, "unknown site 'resid'", lambda: lw.patch(
            model, PAIR, {"q.1": 0.0}, read="resid")),
        (BadInput, "name the sites to keep in read=", lambda: lw.patch(bert, PAIR, {"q.1": 0.0})),
        (BadInput, "name the sites in read=", lambda: lw.patch(
            model, PAIR, {"q.1": 0.0}, layers=[1])),
        (BadInput, "takes nothing from reference=", lambda: lw.ablate(
            model, PAIR, "q.1", reference=PAIR)),
        (BadInput, "how='none' is unknown", lambda: lw.ablate(model, PAIR, "q.1", "none")),  # type: ignore[arg-type]
        (BadInput, "needs prompts of equal length", lambda: lw.ablate(
            model, PROMPTS, "q.1", "resample")),
        (BadInput, "as long as the prompts", lambda: lw.ablate(
            model, PAIR, "q.1", "resample", reference=["the dog", "a cat"])),
        (BadInput, "at least two prompts", lambda: lw.ablate(model, PAIR[0], "q.1", "resample")),
        (BadInput, "use 'zero' for attn_pattern", lambda: lw.ablate(
            model, PAIR, "attn_pattern.1", "mean")),
        (BadInput, "logits are the output", lambda: lw.ablate(model, PAIR, "logits", "mean")),
    ]  # fmt: skip
    for kind, says, call in calls:
        with pytest.raises(kind, match=says):
            call()


def test_an_array_of_patterns_needs_prompts_of_equal_length(toy: Toy) -> None:
    pattern = lw.cache(toy("gpt2"), PAIR, "attn_pattern").attn_pattern.sel(layer=1)
    assert lw.patch(toy("gpt2"), PAIR, {"attn_pattern.1": pattern}).moved.max() < 1e-6
    n = lw.cache(toy("gpt2"), PROMPTS, "attn_pattern").attn_pattern.sel(layer=1).fillna(0)
    with pytest.raises(BadInput, match="needs prompts of equal length"):
        lw.patch(toy("gpt2"), PROMPTS, {"attn_pattern.1": n})
    assert lw.patch(toy("gpt2"), PROMPTS, {"attn_pattern.1": 0.1}).moved.min() > 0


class Mine(Exception):
    """An error of a user's own."""


@pytest.mark.parametrize(
    ("function", "kind", "says"),
    [
        (lambda h: h[:, :, :3], BadInput, r"\(2, 6, 3\) does not fit the selected part"),
        (lambda h: None, BadInput, "the function returned None"),
        (lambda h: (_ for _ in ()).throw(Mine("my own words")), Mine, "my own words"),
    ],
)
def test_an_error_in_an_edit_comes_out_as_it_is_without_internals(
    function: Any, kind: type[Exception], says: str, toy: Toy
) -> None:
    model = toy("gpt2")
    with pytest.raises(kind, match=says) as caught:
        lw.patch(model, PAIR, {"resid_pre.1": function})
    frames = [str(entry.path) for entry in caught.traceback]
    assert not any("nnsight" in f and "_nnsight.py" not in f for f in frames)
    assert not any("transformers" in f for f in frames)
    assert caught.value.__cause__ is None
    assert lw.patch(model, PAIR, {"resid_pre.1": 0.0}).moved.min() > 0  # and nothing is left behind


def test_the_model_cannot_be_run_inside_its_own_run(toy: Toy) -> None:
    """Neither by an edit function nor in a trace of one's own; submodules can."""
    model = toy("gpt2")
    for call in (
        lambda: lw.cache(model, PAIR, "resid_pre"),
        lambda: lw.chain(model, PAIR, [0]),
        lambda: lw.generate(model, PAIR, 2),
    ):

        def nested(h: torch.Tensor, call: Any = call) -> torch.Tensor:
            call()
            return h

        with pytest.raises(BadInput, match="inside a trace or an edit function: run it before"):
            lw.patch(model, PAIR, {"resid_pre.1": nested})
        ids = model.tokens(PAIR).ids
        with pytest.raises(BadInput, match="inside a trace"), model.nn.trace(ids):
            call()
    used = lw.patch(model, PAIR, {"resid_pre.1": lambda h: h + model.unembed(h)[..., :32]})
    assert used.moved.min() > 0


def test_an_edit_that_never_runs_is_an_error() -> None:
    class Sometimes(torch.nn.Module):
        """Runs its blocks only for large inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[1](self.blocks[0](x)) if float(x.max()) > 1 else x

    model = lw.wrap(Sometimes(), example=2 * torch.ones(1, 4))
    assert lw.patch(model, 2 * torch.ones(1, 4), {"resid_post.0": 0.0}).attrs["edits"]
    with pytest.raises(LwlabError, match="did not run"):
        lw.patch(model, torch.zeros(1, 4), {"resid_post.0": 0.0})
    with pytest.raises(LwlabError, match="did not run"):
        lw.cache(model, torch.zeros(1, 4), "resid_post")


def test_edits_are_counted_and_an_uncounted_one_is_refused(toy: Toy) -> None:
    edit = Edit(Address("resid_pre", 1), 0.0)
    with pytest.raises(NoFiring, match=r"the edit of resid_pre\.1 never ran"):
        engine.fired([edit])
    engine.run(toy("gpt2"), PAIR, edits=[edit])
    engine.fired([edit])
    assert (edit.fired, edit.change) == (1, 1.0)


def test_toys_of_the_same_name_are_the_same(toy: Toy) -> None:
    """The tests above rest on it."""
    again = lw.wrap(toys.tiny("gpt2")[0], tokenizer=toys.tokenizer())
    assert lw.cache(again, PAIR, "logits").logits.equals(
        lw.cache(toy("gpt2"), PAIR, "logits").logits
    )
