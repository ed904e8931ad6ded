"""`generate` against a loop that runs the whole edited forward pass anew for each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import DECODERS, PROMPTS, forward

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models.sites import Address

Toy = Callable[[str], lw.Model]
Hook = Callable[[torch.Tensor], torch.Tensor]


def naive(
    model: lw.Model, prompt: str, steps: int, edits: dict[Address, Hook], first: int
) -> list[int]:
    """Greedy; the edit is made at every position from `first` on, at every step."""
    ids = model.tokens(prompt).ids
    start = ids.shape[1]

    def late(hook: Hook) -> Hook:
        def edit(old: torch.Tensor) -> torch.Tensor:
            return torch.cat([old[:, :first], hook(old[:, first:])], 1)

        return edit

    for _ in range(steps):
        with torch.no_grad():
            z, _ = forward(model, ids, edit={at: late(hook) for at, hook in edits.items()})
        ids = torch.cat([ids, z[:, -1].argmax(-1)[:, None]], 1)
    return [int(i) for i in ids[0, start:]]


def site(model: lw.Model) -> str:
    return "mixer_out" if "mixer_out" in model.sites() else "attn_out"


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("name", DECODERS)
def test_an_edit_at_every_step_is_the_naive_loop(name: str, positions: Any, toy: Toy) -> None:
    model, prompt = toy(name), PROMPTS[2]
    push = torch.linspace(-2, 2, model.d_model)
    hooks: dict[str, Hook] = {
        "resid_post.0": lambda h: h + push,
        f"{site(model)}.2": lambda h: 2 * h,
    }
    got = lw.generate(model, prompt, 6, hooks, positions=positions, eos_token_id=-1)
    n = len(prompt.split())
    want = naive(
        model, prompt, 6, {Address.parse(k): v for k, v in hooks.items()},
        0 if positions == "all" else n - 1,
    )  # fmt: skip
    assert got.ids.values[0].tolist() == want
    assert got.attrs["edits"] == ["resid_post.0: fired 6", f"{site(model)}.2: fired 6"]
    plain = lw.generate(model, prompt, 6, eos_token_id=-1)
    assert plain.ids.values[0].tolist() == naive(model, prompt, 6, {}, 0)


def test_the_edit_matters(toy: Toy) -> None:
    """Else the comparison above compares nothing."""
    differ = 0
    for name in DECODERS:
        model = toy(name)
        push = torch.linspace(-2, 2, model.d_model)
        edits = {"resid_post.0": lambda h, p=push: h + p}
        edited = lw.generate(model, PROMPTS[2], 6, edits, eos_token_id=-1)
        differ += not edited.ids.equals(lw.generate(model, PROMPTS[2], 6, eos_token_id=-1).ids)
    assert differ > len(DECODERS) / 2


@pytest.mark.parametrize("value", [0.0, "vector", "head"])
def test_values_that_are_not_functions_are_put_in_at_every_step(value: Any, toy: Toy) -> None:
    model = toy("llama")
    at, put, hook = "mlp_out.1", value, lambda h: torch.zeros_like(h)
    if value == "vector":
        put = torch.linspace(-1, 1, 32)
        hook = lambda h: put.expand_as(h)  # noqa: E731
    if value == "head":
        at, put = "head_out.1.2", 0.0

        def hook(h: torch.Tensor) -> torch.Tensor:
            return torch.cat([h[:, :, :2], torch.zeros_like(h[:, :, :1]), h[:, :, 3:]], 2)

    for positions in ("all", "last"):
        got = lw.generate(model, PROMPTS[2], 5, {at: put}, positions=positions, eos_token_id=-1)  # type: ignore[arg-type]
        first = 0 if positions == "all" else len(PROMPTS[2].split()) - 1
        whole = model.anatomy.address(at)
        want = naive(model, PROMPTS[2], 5, {Address(whole.site, whole.layer): hook}, first)
        assert got.ids.values[0].tolist() == want


def test_a_pattern_can_be_edited_while_generating(toy: Toy) -> None:
    model = toy("gpt2")

    def only_start(pattern: torch.Tensor) -> torch.Tensor:
        pattern[:] = 0
        pattern[..., 0] = 1
        return pattern

    got = lw.generate(model, PROMPTS[2], 4, {"attn_pattern.1": only_start}, eos_token_id=-1)
    ids = model.tokens(PROMPTS[2]).ids
    for token in got.ids.values[0]:
        z = lw.patch(model, ids, {"attn_pattern.1": only_start}, compare=False).logits
        assert int(z.argmax("token")[0]) == token
        ids = torch.cat([ids, torch.tensor([[int(token)]])], 1)
    assert got.attrs["edits"] == ["attn_pattern.1: fired 4"]
    assert model.module.config._attn_implementation == "sdpa"


def test_text_ends_where_the_model_ends_it_and_not_at_a_padding_id(toy: Toy) -> None:
    model = toy("gpt2")
    free = lw.generate(model, PROMPTS[:2], 6, eos_token_id=-1).ids.values
    ends = int(free[0, 2])
    got = lw.generate(model, PROMPTS[:2], 6, eos_token_id=ends)
    for row, whole in zip(got.ids.values.tolist(), free.tolist()):
        n = whole.index(ends) if ends in whole else 6
        n = min(n, got.sizes["step"])
        assert row == [*whole[:n], *[-1] * (got.sizes["step"] - n)]
    # Id 0 is the padding of this tokenizer, and a token like any other to the model.
    zero = {"final_norm": lambda h: model.module.lm_head.weight[0].detach().expand_as(h) * 50}
    assert lw.generate(model, PROMPTS[1], 3, zero, eos_token_id=-1).ids.values.tolist() == [
        [0, 0, 0]
    ]


def test_options_go_to_the_generator(toy: Toy) -> None:
    model = toy("gpt2")
    draws = set()
    for seed in range(4):
        torch.manual_seed(seed)
        got = lw.generate(model, PROMPTS[1], 5, do_sample=True, temperature=2.0, eos_token_id=-1)
        draws.add(tuple(got.ids.values[0]))
    assert len(draws) > 1


def test_a_model_that_generates_is_left_as_it_was(toy: Toy) -> None:
    model = toy("llama")
    before = lw.cache(model, PROMPTS[0], "logits")
    lw.generate(model, PROMPTS[0], 3, {"resid_post.1": 0.0})
    assert lw.cache(model, PROMPTS[0], "logits").equals(before)
    with pytest.raises(ZeroDivisionError):
        lw.generate(model, PROMPTS[0], 3, {"resid_post.1": lambda h: 1 / 0})
    assert lw.cache(model, PROMPTS[0], "logits").equals(before)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("bert", {}, "bert does not generate text here; load a decoder"),
        ("vit", {}, "vit does not generate"),
        ("t5:decoder", {}, "does not generate text here"),
        ("gpt2", {"max_new_tokens": 0}, "at least 1"),
        ("gpt2", {"num_return_sequences": 3}, "one text comes back for each prompt"),
        ("gpt2", {"return_dict_in_generate": True}, "one text comes back"),
        ("gpt2", {"max_new_tokens": 62}, "65 tokens .* are more than the 64 that gpt2 reads"),
        ("gpt2", {"edits": {"q.1": 0.0}, "positions": "first"}, "use 'all' or 'last'"),
        ("gpt2", {"edits": {"q.9": 0.0}}, "layer is 0..2"),
        ("gpt2", {"edits": {"mlp_out.1": torch.zeros(1, 3, 32)}}, r"\(1, 3, 32\) does not fit"),
        ("gpt2", {"edits": {"attn_pattern.1": 0.0}, "positions": "last"}, "does not apply"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_first_step(
    name: str, arguments: dict[str, Any], says: str, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(name)
    monkeypatch.setattr(type(model.module), "generate", None, raising=False)
    with pytest.raises(BadInput, match=says):
        lw.generate(model, "John went to" if name == "gpt2" else "x", **arguments)


def test_the_default_model_writes_text(smollm2: lw.Model) -> None:
    got = lw.generate(smollm2, ["The capital of France is", "Once upon a time there was"], 6)
    assert got.text.values[0].startswith(" Paris")
    same = lw.generate(
        smollm2, ["The capital of France is", "Once upon a time there was"], 6,
        {"resid_post.10": lambda h: h + 0.0},
    )  # fmt: skip
    assert same.text.equals(got.text)
    assert same.attrs["edits"] == ["resid_post.10: fired 6"]
