"""The depth board shows what `lw.chain` and the model say, and bad input is a message."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.tracing import engine
from lwlab.widgets import DepthBoard, depth

WORDS = "the cat sat on the mat"


@pytest.fixture
def board(toy):
    made = depth(toy("llama"), WORDS, WORDS)
    assert made.wait(60)
    yield made
    made.close()


def test_the_whole_model_agrees_with_itself_and_with_its_perplexity(board):
    a, model = board.answer, board.model
    assert board.error == ""
    assert board.layers == list(range(model.n_layers))
    assert a["kl"] == pytest.approx(0, abs=1e-6)
    assert [r["id"] for r in a["top"]] == [r["id"] for r in a["full"]]
    z = engine.run(model, WORDS).logits[0].softmax(-1)
    assert a["full"][0]["p"] == pytest.approx(float(z.max()), abs=1e-6)
    expected = float(lw.tasks.perplexity(model, WORDS).perplexity)
    assert a["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert a["full_perplexity"] == a["perplexity"]


@pytest.mark.parametrize("layers", [[0, 0, 0], [1, 0], ["attn.0", 1, "mlp.1", "mlp.1"]])
def test_any_sequence_is_what_the_chain_says(board, layers):
    board.steps = layers
    assert board.wait(60)
    assert board.layers == layers
    made = lw.chain(board.model, WORDS, layers, streams=True)
    p = torch.as_tensor(made.logits.values[0]).softmax(-1)
    assert board.answer["kl"] == pytest.approx(float(made.moved[0]), rel=1e-3, abs=1e-6)
    assert board.answer["top"][0]["p"] == pytest.approx(float(p.max()), abs=1e-5)
    h = torch.as_tensor(made.resid.values[-1, 0])
    with torch.no_grad():
        z = board.model.unembed(h)
    ids = board.model.tokens(WORDS).ids[0]
    nll = F.cross_entropy(z[:-1], ids[1:]).exp()
    assert board.answer["perplexity"] == pytest.approx(float(nll), rel=1e-4)


def test_a_sequence_keeps_the_layers_it_lacks_switched_off_in_their_place(board):
    n = board.model.n_layers
    board.steps = list(range(1, n))
    assert [r["layer"] for r in board.steps] == list(range(n))
    assert not any(board.steps[0][part] for part in ("attn", "mlp"))
    board.steps = [{**r, "attn": True, "mlp": True} for r in board.steps]
    assert board.layers == list(range(n))
    board.steps = [0, 0, 0]
    assert board.steps[0] == {"layer": 0, "attn": True, "mlp": True, "times": 3}
    board.reset()
    assert board.layers == list(range(n))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([99], "99"),
        ("0,1", "not understood"),
        ([{"layer": 99}], "no layer 99"),
        ([{"attn": True}], "lacks 'layer'"),
        ([{"layer": 0, "times": 0}], "from 1 to 9"),
    ],
)
def test_bad_steps_are_refused_and_the_board_stays(board, steps, said):
    before = list(board.steps)
    with pytest.raises(BadInput, match=said):
        board.steps = steps
    assert board.steps == before


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"text": ""}, "perplexity is empty"),
        ({"prompt": "cat " * 10_000}, "10000 tokens; this model reads at most 64"),
        ({"prompt": "x" * 200_000}, "characters"),
    ],
)
def test_bad_text_is_a_message_and_the_next_answer_clears_it(board, traits, said):
    for name, value in traits.items():
        setattr(board, name, value)
    assert board.wait(60)
    assert said in board.error
    board.prompt, board.text = WORDS, WORDS
    assert board.wait(60)
    assert board.error == ""


def test_all_layers_off_is_a_message(board):
    board.steps = [{**r, "attn": False, "mlp": False} for r in board.steps]
    assert board.wait(60)
    assert "every layer is off" in board.error


def test_other_scripts_and_emoji_run(board):
    board.prompt = "שלום 👋🏽 עולם"
    assert board.wait(60)
    assert board.error == ""
    assert len(board.answer["top"]) == 10


def test_ten_fast_changes_and_two_boards_on_one_model_end_with_the_last(board):
    other = depth(board.model, WORDS, WORDS)
    for k in range(1, 11):
        board.steps = [0] * (1 + k % 3)
        other.steps = [1] * (1 + k % 4)
    assert board.wait(60)
    assert other.wait(60)
    assert (board.answer["steps"], other.answer["steps"]) == (2, 3)
    assert board.answer["kl"] == pytest.approx(
        float(lw.chain(board.model, WORDS, [0, 0]).moved[0]), rel=1e-3, abs=1e-6
    )
    other.close()


def test_a_closed_board_stays_quiet(board):
    board.close()
    board.steps = [0]
    assert board.wait(10)


def test_static_twin_says_what_the_board_shows(board):
    board.steps = [0, 0]
    assert board.wait(60)
    data, _ = board._repr_mimebundle_()
    assert "[0, 0]" in data["text/plain"]
    assert f"KL {board.answer['kl']:.3g} nats" in data["text/plain"]
    assert board.static_png().startswith(b"\x89PNG")
    assert len(board.static_png()) < 300_000


def test_models_that_predict_no_next_token_are_refused(toy):
    with pytest.raises(BadInput, match="needs a decoder"):
        DepthBoard(toy("bert"))


def test_smollm2_needs_its_first_layer_more_than_a_middle_one(smollm2):
    board = depth(smollm2, "The capital of France is")
    assert board.wait(120)
    assert board.answer["full"][0]["token"] == " Paris"
    every = list(range(smollm2.n_layers))
    kls = {}
    for gone in (0, 15):
        board.steps = [i for i in every if i != gone]
        assert board.wait(120)
        assert board.error == ""
        kls[gone] = board.answer["kl"]
        assert board.answer["perplexity"] > board.answer["full_perplexity"]
    assert kls[0] > 5 * kls[15] > 0
    board.close()
