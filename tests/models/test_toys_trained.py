"""Toys with a recipe: trained once, the same each time, resumed where they were cut off."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import lwlab as lw
from lwlab.errors import BadInput, Diverged, UnknownName
from lwlab.models import toys, zoo
from lwlab.models.toys import training
from lwlab.models.toys.recipe import Recipe, characters


class Copy(Recipe):
    """A one-layer GPT-2 that learns to say the same letter again."""

    name = "copy"
    summary = "repeats a letter"
    steps = 30
    keep = (0, 10)
    every = 1
    scale = 1.0

    def build(self):
        """Draw the weights."""
        from transformers import GPT2Config, GPT2LMHeadModel

        self.tokenizer = characters(16)
        config = GPT2Config(
            **{"vocab_size": 99, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
            **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
        )
        self.module = GPT2LMHeadModel(config)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2)

    def batch(self, step, generator):
        """Sixteen texts of one letter each."""
        return torch.randint(3, 99, (16, 1), generator=generator).expand(-1, 8)

    def loss(self, batch):
        """Cross-entropy of the next letter."""
        logits = self.module(batch).logits[:, :-1]
        return self.scale * torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten()
        )

    def measure(self):
        """Loss on the first letters."""
        return {"held_out": float(self.loss(torch.arange(3, 19)[:, None].expand(-1, 8)))}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(toys.TABLE, "copy", Copy)
    return tmp_path / "cache"


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.module.parameters()])


def test_it_is_trained_once_and_loads_like_any_model():
    seen = []
    model = toys.trained("copy", watch=lambda step, numbers: seen.append(step))
    assert seen == list(range(30))
    again = lw.load("toys/copy")
    assert torch.equal(weights(model), weights(again))
    assert again.name == "toys/copy"
    assert again.checks["logits"] == 0.0
    assert again.checksum == toys.history("copy")["checksum"]
    toys.trained("copy", watch=lambda step, numbers: pytest.fail("it was trained a second time"))
    kept = {k["step"]: k["held_out"] for k in toys.history("copy")["kept"]}
    assert list(kept) == [0, 10, 30]
    assert kept[0] > kept[10] > kept[30]
    at_start, at_ten = lw.load("toys/copy@0"), lw.load("toys/copy@10")
    assert not torch.equal(weights(at_start), weights(at_ten))
    assert torch.equal(weights(at_start), weights(lw.wrap(Copy(0).module.eval())))


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(own_cache):
    first = toys.trained("copy").checksum
    shutil.rmtree(own_cache / "models")
    assert toys.trained("copy").checksum == first
    assert toys.trained("copy", seed=1).checksum != first


class Cut(Exception):
    """The machine goes away."""


def test_a_run_that_is_cut_off_goes_on_where_it_was(monkeypatch, own_cache):
    whole = toys.trained("copy").checksum
    shutil.rmtree(own_cache / "models")
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)

    def cut(step, numbers):
        if step == 17:
            raise Cut

    with pytest.raises(Cut):
        toys.trained("copy", watch=cut)
    seen = []
    resumed = toys.trained("copy", watch=lambda step, numbers: seen.append(step))
    assert seen[0] == 17, "the state before the cut step had been saved"
    assert resumed.checksum == whole, "to the last bit"
    steps = [s["step"] for s in toys.history("copy")["steps"]]
    assert steps == list(range(30))
    left = [p.name for p in (own_cache / "models" / "toys").iterdir()]
    assert len(left) == 1
    assert not left[0].endswith(".part")


def test_what_a_recipe_starts_from_is_part_of_its_checksum(monkeypatch):
    before = Copy.checksum()
    monkeypatch.setattr(Copy, "parents", ("char-gpt2",))
    assert Copy.checksum() != before


def test_a_teacher_can_train_it_anew():
    seen = []
    first = toys.trained("copy").checksum
    toys.train(Copy, again=True, watch=lambda step, numbers: seen.append(numbers["loss"]))
    assert len(seen) == 30
    assert zoo.fetch("toys/copy", again=True).checksum == first


def test_a_damaged_copy_is_made_again(own_cache):
    lw.load("toys/copy")
    (file,) = (own_cache / "models" / "toys").glob("*/step-30/model.safetensors")
    file.write_bytes(b"short")
    assert lw.load("toys/copy").checks["logits"] == 0.0


def test_a_diverged_training_says_so_and_keeps_nothing(monkeypatch, own_cache):
    monkeypatch.setattr(Copy, "scale", float("nan"))
    with pytest.raises(Diverged, match=r"copy diverged at step 0 of 30 \(seed 0\)"):
        toys.trained("copy")
    assert list((own_cache / "models" / "toys").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("toys/copi", UnknownName, "did you mean 'copy'"),
        ("toys/copy@7", BadInput, "keeps its weights at the steps 0, 10, 30, not at 7"),
        ("toys/copy:x", BadInput, "toys/NAME:SEED"),
        ("toys/copy:-1", BadInput, "seeds of toys are 0, 1, 2"),
    ],
)
def test_wrong_names_say_what_would_work(name, error, words, own_cache):
    with pytest.raises(error, match=words):
        zoo.resolve(name)
    assert not (own_cache / "models").exists(), "nothing was trained"


def test_letters_come_back_as_they_were():
    tokenizer = characters()
    text = 'def f(x):\n    return "é" + x  # two  spaces'
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text.replace("é", "<unk>")


@pytest.mark.parametrize("name", toys.TABLE)
def test_every_recipe_of_the_table_is_complete(name):
    recipe = training.find(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.steps > 0
    assert all(0 <= step < recipe.steps for step in recipe.keep)
    for parent in recipe.parents:
        assert parent in toys.TABLE
    assert json.dumps(recipe.checksum())
