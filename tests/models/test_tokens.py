from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models import toys
from lwlab.models.tokens import Tokens, tokenize

TOKENIZER = toys.tokenizer()
PROMPTS = ["Mary went to the store", "the dog", "John gave Mary"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_find_own_positions_on_either_side(side: str) -> None:
    tokens = tokenize(TOKENIZER, PROMPTS, side)  # type: ignore[arg-type]
    assert tokens.lengths.tolist() == [5, 2, 3]
    for position in (0, 1, -1, -2):
        columns = tokens.columns(position)
        for row, words in enumerate(PROMPTS):
            word = TOKENIZER.decode([int(tokens.ids[row, columns[row]])])
            assert word == words.split()[position]
    assert tokens.columns([4, 1, 0]).tolist() == ([4, 1, 0] if side == "right" else [4, 4, 2])


def test_padding_moves_to_the_other_side_and_back() -> None:
    right = tokenize(TOKENIZER, PROMPTS)
    left = right.pad("left")
    again = left.pad("right")
    assert torch.equal(left.ids, tokenize(TOKENIZER, PROMPTS, "left").ids)
    assert torch.equal(left.mask, tokenize(TOKENIZER, PROMPTS, "left").mask)
    assert torch.equal(again.ids, right.ids)
    assert torch.equal(again.mask, right.mask)
    assert tokenize(TOKENIZER, left) is left  # Tokens keep their side unless one is asked for
    assert torch.equal(tokenize(TOKENIZER, left, "right").ids, right.ids)


def test_position_ids_count_own_tokens() -> None:
    left = tokenize(TOKENIZER, PROMPTS, "left")
    assert left.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1], [0, 0, 0, 1, 2]]


def test_strings_are_the_own_tokens() -> None:
    tokens = tokenize(TOKENIZER, PROMPTS, "left")
    assert tokens.strings[1] == ("the", "dog")
    assert tokens.texts == tuple(PROMPTS)
    assert len(tokens) == 3


@pytest.mark.parametrize("position", [5, -6, [0, 0, 3], [0, 2, 0]])
def test_a_position_beyond_a_prompt_names_the_prompt(position: object) -> None:
    tokens = tokenize(TOKENIZER, PROMPTS)
    with pytest.raises(BadInput, match=r"position -?\d+ is out of range: prompt \d has \d tokens"):
        tokens.columns(position)  # type: ignore[arg-type]


def test_a_position_list_must_name_every_prompt() -> None:
    with pytest.raises(BadInput, match="2 positions for 3 prompts"):
        tokenize(TOKENIZER, PROMPTS).columns([0, 1])


def test_unequal_lengths_are_refused_by_name_where_alignment_is_needed() -> None:
    with pytest.raises(BadInput, match=r"swapping needs prompts of equal length.*the dog"):
        tokenize(TOKENIZER, PROMPTS).require_equal_length("swapping")
    assert tokenize(TOKENIZER, ["the dog", "a cat"]).require_equal_length("swapping") == 2


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ("", "prompt 0 is empty"),
        (["the dog", ""], "prompt 1 is empty"),
        ([], "non-empty list of strings"),
        ([1, 2], "non-empty list of strings"),
        (torch.tensor([[1.5, 2.0]]), "whole numbers"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "whole numbers"),
        (torch.zeros(2, 0, dtype=torch.long), "hold no token"),
        (torch.tensor([[3, 100]]), "token id 100 is outside the vocabulary, 0..99"),
        (torch.tensor([[3, -1]]), "token id -1 is outside the vocabulary"),
        ("the dog " * 40, "prompt 0 has 80 tokens; this model reads at most 64"),
    ],
)
def test_bad_prompts_are_refused_before_the_model_runs(
    prompts: object, says: str, toy: Callable[[str], lw.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy("gpt2")
    monkeypatch.setattr(model.module.transformer, "forward", None)  # running it would fail
    with pytest.raises(BadInput, match=says):
        lw.cache(model, prompts, "resid_pre")  # type: ignore[arg-type]


def test_text_needs_a_tokenizer_and_ids_do_not() -> None:
    model = lw.wrap(toys.tiny("gpt2")[0])
    with pytest.raises(BadInput, match="no tokenizer; pass token ids"):
        lw.cache(model, "the dog", "embed")
    with pytest.raises(BadInput, match="no tokenizer, so no word has an id"):
        model.token_id("dog")
    ids = torch.tensor([5, 6, 7])
    assert lw.cache(model, ids, "embed").sizes["position"] == 3


def test_a_word_of_several_tokens_is_shown_in_pieces(toy: Callable[[str], lw.Model]) -> None:
    model = toy("gpt2")
    assert model.token_id("dog") == TOKENIZER("dog")["input_ids"][0]
    with pytest.raises(BadInput, match=r"2 tokens for gpt2: \['the', 'dog'\]"):
        model.token_id("the dog")


def test_what_a_tokenizer_returns_is_read_as_tokens(toy: Callable[[str], lw.Model]) -> None:
    """Its mask counts: the numbers are those of the text, on either side of padding."""
    model = toy("gpt2")
    text = lw.cache(model, PROMPTS, ["resid_post", "logits"])
    for side in ("left", "right"):
        encoded = TOKENIZER(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
        given = lw.cache(model, encoded, ["resid_post", "logits"])
        for name in ("resid_post", "logits"):
            assert float(abs(given[name] - text[name]).max()) < 1e-5
            assert given[name].isnull().equals(text[name].isnull())
    holed = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.tensor([[1, 0, 1]])}
    with pytest.raises(BadInput, match="ones over each prompt's tokens"):
        lw.cache(model, holed, "embed")


def test_a_side_must_be_left_or_right(toy: Callable[[str], lw.Model]) -> None:
    with pytest.raises(BadInput, match="padding_side='up'"):
        toy("gpt2").tokens("the dog", padding_side="up")  # type: ignore[arg-type]
    assert isinstance(toy("gpt2").tokens("the dog"), Tokens)
