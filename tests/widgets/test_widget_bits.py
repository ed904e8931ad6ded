"""The bit board: its numbers are the fake-quantiser's, and the weights always come back."""

from __future__ import annotations

import pytest
import torch

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.quantization import fake_quantized
from lwlab.widgets import BitBoard, bits

WORDS = "the cat sat on the mat"
LONG = ["the dog ran to the cat", "a cat sat on a dog and the mat"]


@pytest.fixture
def model(toy):
    return toy("llama")


@pytest.fixture
def board(model):
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    made = bits(model, WORDS, group=8, long=LONG)
    assert made.wait(60)
    yield made
    made.close()
    assert made.wait(30)
    for k, v in model.module.state_dict().items():
        assert torch.equal(v, before[k]), k


def test_untouched_it_is_the_model(board, model):
    a = board.answer
    assert board.error == ""
    assert a["perplexity"] == a["full_perplexity"]
    assert a["perplexity"] == pytest.approx(float(lw.tasks.perplexity(model, WORDS).perplexity))
    assert a["megabytes"] == a["whole_megabytes"]


def test_each_answer_is_what_the_fake_quantiser_says(board, model):
    wanted = [2, 16, *[4] * (model.n_layers - 2)]
    board.bits = wanted
    assert board.wait(60)
    table = {i: b for i, b in enumerate(wanted) if b != 16}
    with fake_quantized(model, table, 8) as rounded:
        expected = float(lw.tasks.perplexity(model, WORDS).perplexity)
    a = board.answer
    assert a["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert a["perplexity"] != a["full_perplexity"]
    untouched = a["whole_megabytes"] / model.n_layers
    assert a["megabytes"] == pytest.approx(rounded.megabytes + untouched)


def test_a_budget_is_shared_out_by_name_and_kept(board):
    budget = 0.3 * board.answer["whole_megabytes"]
    for name in ("greedy", "uniform"):
        board.allocate(budget, name)
        assert board.wait(60)
        assert board.error == ""
        assert board.answer["megabytes"] <= budget
        assert board.answer["perplexity"] is not None
        assert max(board.bits) <= 8
    assert len(set(board.bits)) == 1
    board.allocate(1e6)
    assert board.wait(60)
    assert set(board.bits) == {16}


@pytest.mark.parametrize(
    ("megabytes", "technique", "said"),
    [(0.0, "greedy", "too few"), (1.0, "gready", "greedy"), (None, "greedy", "give a number")],
)
def test_a_budget_that_cannot_be_is_a_message(board, megabytes, technique, said):
    board.allocate(megabytes, technique)
    assert board.wait(60)
    assert said in board.error


def test_measured_properly_it_is_the_perplexity_over_all_texts(board, model):
    seen = []
    board.observe(lambda change: seen.append(change["new"]), "progress")
    board.bits = [3] * model.n_layers
    assert board.wait(60)
    board.measure()
    assert board.wait(60)
    with fake_quantized(model, 3, 8):
        expected = float(lw.tasks.perplexity(model, LONG).perplexity)
    assert board.proper["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert board.proper["bits"] == board.bits
    assert len({p for p in seen if p > 0}) >= 2
    board.bits = [4] * model.n_layers
    assert board.wait(60)
    assert board.proper == {}


@pytest.mark.parametrize("end", ["cancel", "error", "close"])
def test_the_weights_come_back_however_it_ends(board, model, end, monkeypatch):
    """The fixture compares every weight at the end."""
    from lwlab_widgets import _bits

    rounded = []
    before = model.module.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()

    def interrupt(*_args, **_options):
        now = model.module.state_dict()["model.layers.0.mlp.up_proj.weight"]
        rounded.append(not torch.equal(now, before))
        if end == "error":
            raise BadInput("no such luck")
        if end == "cancel":
            board.cancel += 1
        else:
            board.close()
        raise AssertionError("what a stopped job raises is not shown")

    monkeypatch.setattr(_bits, "perplexity", interrupt)
    board.bits = [2] * model.n_layers
    assert board.wait(60)
    assert rounded == [True]
    assert board.error == ("no such luck" if end == "error" else "")


def test_bad_input(board, toy):
    n = board.model.n_layers
    for bad, said in (([4], "numbers for"), ([9] * n, "give 2..8"), ([1] * n, "give 2..8")):
        with pytest.raises(BadInput, match=said):
            board.bits = bad
    for text, said in (("", "empty"), ("cat " * 10_000, "10000 tokens"), ("the", "2 are needed")):
        board.text = text
        assert board.wait(60)
        assert said in board.error
    with pytest.raises(BadInput, match="decoder"):
        BitBoard(toy("bert"))


def test_fast_changes_and_two_boards_on_one_model_end_with_the_last(board, model):
    other = bits(model, WORDS, group=8, long=LONG)
    for k in range(10):
        board.bits = [2 + k % 5] * model.n_layers
        other.bits = [2 + k % 4] * model.n_layers
    assert board.wait(60)
    assert other.wait(60)
    for each, b in ((board, 6), (other, 3)):
        with fake_quantized(model, b, 8):
            expected = float(lw.tasks.perplexity(model, WORDS).perplexity)
        assert each.answer["perplexity"] == pytest.approx(expected, rel=1e-5)
    other.close()


def test_static_twin_names_bits_size_and_perplexity(board):
    data, _ = board._repr_mimebundle_()
    assert str(board.bits) in data["text/plain"]
    assert f"{board.answer['megabytes']:.1f} MB" in data["text/plain"]
    assert board.static_png().startswith(b"\x89PNG")


def test_smollm2_bears_eight_bits_and_not_two(smollm2):
    board = bits(smollm2)
    found = {}
    for b in (8, 2):
        board.bits = [b] * smollm2.n_layers
        assert board.wait(300)
        found[b] = board.answer["perplexity"] / board.answer["full_perplexity"]
    board.close()
    assert found[8] == pytest.approx(1, abs=0.02)
    assert found[2] > 5
