"""Control vectors: by hand, by scikit-learn, by a full forward; effects and prices; bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.decomposition import TruncatedSVD

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.steering import Lists, doses, examples, log_odds, losses, price
from lwlab.steering import repe_reasoning as rr

GOOD = ["Mary and John went to the store", "the king was in France", "Mary gave a book to John"]
BAD = ["the city of Rome is in Italy and", "the woman said that she", "the man had a book"]
WORDS = ["store", "king", "book"]
LISTS = Lists(("Mary and John went to the", "the man had a"), ("book", "drink"), ("king", "store"))
ARCHS = ["llama", "gpt2", "gemma2", "gpt_neox"]
Toy = Callable[[str], lw.Model]


def states(model: lw.Model, texts: list[str]) -> np.ndarray[Any, Any]:
    """Streams after each block at the last token, text by text: [layers, texts, d]."""
    rows = [lw.cache(model, t, "resid_post", positions=-1).resid_post for t in texts]
    return np.stack([r.isel(prompt=0, position=0).values for r in rows], 1)


@pytest.mark.parametrize("arch", ARCHS)
def test_vectors_are_the_means_and_the_first_direction(arch: str, toy: Toy) -> None:
    model = toy(arch)
    a, b = states(model, GOOD), states(model, BAD)
    tell = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(rr.vectors(model, GOOD, kind="reading"), a.mean(1), **tell)
    np.testing.assert_allclose(rr.vectors(model, GOOD, BAD), a.mean(1) - b.mean(1), **tell)
    pca = rr.vectors(model, GOOD, BAD, "pca")
    for layer in range(model.n_layers):
        peer = TruncatedSVD(1, algorithm="arpack").fit(a[layer] - b[layer]).components_[0]
        assert abs(float(peer @ pca.values[layer])) == pytest.approx(1, abs=1e-3)
        assert float(((a[layer] - b[layer]) @ pca.values[layer]).mean()) > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sweep_is_the_patched_forward(arch: str, toy: Toy) -> None:
    model, layer = toy(arch), 1
    v = rr.vectors(model, GOOD, BAD)
    prompts = [*LISTS.prompts, "the woman"]  # of three lengths
    found = rr.sweep(model, prompts, WORDS, WORDS, v, layer, [0.0, 0.7])
    for i, prompt in enumerate(prompts):
        z = lw.patch(model, prompt, rr.edits(v, layer, 0.7))
        p = torch.as_tensor(z.logits.values[0]).softmax(-1)
        ids = [model.token_id(w) for w in WORDS]
        one = found.sel(alpha=0.7).isel(prompt=i)
        assert float(one.right) == pytest.approx(float(p[ids[i]]), rel=1e-3)
        assert float(one.wrong) == pytest.approx(float(p[ids].sum() - p[ids[i]]), rel=1e-3)
        assert float(one.kl) == pytest.approx(float(z.moved[0]), rel=1e-3, abs=1e-6)
        assert float(one.entropy) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-3)
        assert int(one.said) == int(p[ids].argmax())
        assert float(one.correct) == float(int(one.said) == i)


@pytest.mark.parametrize("arch", ARCHS)
def test_no_alpha_is_the_base_bit_for_bit_and_divergence_grows_like_a_square(
    arch: str, toy: Toy
) -> None:
    model = toy(arch)
    v = rr.vectors(model, GOOD, BAD)
    for normalise in (False, True):
        off = lw.patch(model, GOOD, rr.edits(v, 1, 0.0, normalise=normalise))
        assert bool((off.logits == off.base_logits).all())
    found = rr.sweep(model, GOOD, WORDS, WORDS, v, 1, [-0.3, -0.1, -0.05, 0, 0.05, 0.1, 0.3])
    kl = found.kl.mean("prompt")
    assert float(kl.sel(alpha=0)) == 0
    assert (np.diff(kl.values[:4]) < 0).all()
    assert (np.diff(kl.values[3:]) > 0).all()
    for sign in (-1, 1):
        assert 2.5 < float(kl.sel(alpha=0.1 * sign) / kl.sel(alpha=0.05 * sign)) < 6


def test_normalised_steering_turns_and_does_not_stretch(toy: Toy) -> None:
    v = rr.vectors(toy("llama"), GOOD, BAD)
    h = torch.randn(2, 3, v.sizes["d_model"])
    (push,) = rr.edits(v, 1, 2.0, normalise=True).values()
    torch.testing.assert_close(push(h).norm(dim=-1), h.norm(dim=-1))
    (plain,) = rr.edits(v, 1, 2.0).values()
    torch.testing.assert_close(plain(h) - h, 2 * torch.as_tensor(v.values[1]).expand_as(h))


def test_random_vectors_are_as_long_and_differ(toy: Toy) -> None:
    v = rr.vectors(toy("llama"), GOOD, BAD)
    noise = rr.random_like(v, 4, seed=1)
    np.testing.assert_allclose(
        np.linalg.norm(noise, axis=-1),
        np.broadcast_to(np.linalg.norm(v, axis=-1), (4, 3)),
        rtol=1e-5,
    )
    assert float(abs(noise[0] - noise[1]).max()) > 0
    assert bool((rr.random_like(v, 4, seed=1) == noise).all())
    args = (["the man had a", "the woman"], WORDS[:2], WORDS)
    many = rr.sweep(toy("llama"), *args, noise, 1, [0.0, 0.5])
    for i in range(4):
        one = rr.sweep(toy("llama"), *args, noise.isel(draw=i), 1, [0.0, 0.5])
        assert bool((one.kl == many.kl.isel(draw=i)).all())
        assert float(one.kl[1].max()) > 0


def test_alpha_is_chosen_where_it_is_not_tested() -> None:
    right = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]], float)  # alphas -1, 0, 1
    found = xr.Dataset(
        {"correct": (("alpha", "prompt"), right)}, coords={"alpha": [-1.0, 0.0, 1.0]}
    )
    assert rr.gain(found, [0, 1], [2, 3]) == (-1.0, -0.5)
    assert rr.gain(found, [2, 3], [0, 1]) == (0.0, 0.0)  # a tie goes to the smaller step
    assert rr.gain(found, [0, 2], [1, 3]) == (1.0, -0.5)
    with pytest.raises(BadInput, match="of their own"):
        rr.gain(found, [0], [0, 1])
    with pytest.raises(BadInput, match="alpha=0"):
        rr.gain(found.isel(alpha=[0]), [0], [1])


def test_log_odds_and_losses_are_those_of_one_text_at_a_time(toy: Toy) -> None:
    model = toy("llama")
    edits = rr.edits(rr.vectors(model, GOOD, BAD), 1, 0.5)
    for given in (None, edits):
        odds, nll = log_odds(model, LISTS, given), losses(model, [GOOD[0], BAD[1]], given)
        for i, prompt in enumerate(LISTS.prompts):
            z = lw.patch(model, prompt, edits) if given else lw.cache(model, prompt, "logits")
            logits = z.logits.values[0] if given else z.logits.values[0, -1]
            p = np.exp(logits.astype(float))
            want, other = (
                p[[model.token_id(w) for w in words]].sum()
                for words in (LISTS.wanted, LISTS.unwanted)
            )
            assert float(odds[i]) == pytest.approx(np.log(want / other), abs=1e-3)
        for i, text in enumerate([GOOD[0], BAD[1]]):
            ids = torch.tensor([model.tokenizer(text)["input_ids"]])
            if given:
                z_all = torch.as_tensor(lw.patch(model, text, edits, logits="all").logits.values)
            else:
                with torch.no_grad():
                    z_all = model.module(input_ids=ids).logits
            want_nll = torch.nn.functional.cross_entropy(z_all[0, :-1], ids[0, 1:])
            assert float(nll[i]) == pytest.approx(float(want_nll), rel=1e-3)


def test_doses_and_prices(toy: Toy) -> None:
    model = toy("llama")
    v = rr.vectors(model, GOOD, BAD)
    found = doses(
        model, {"v": lambda a: rr.edits(v, 1, a)}, {"v": [0.0, 0.5]}, LISTS, [GOOD[0], BAD[0]]
    )
    assert float(abs(found.gain[0]).max()) == float(abs(found.rise[0]).max()) == 0
    line = xr.Dataset(
        {
            "gain": (("dose", "prompt"), [[2.0, 4.0], [0.5, 1.5]]),
            "rise": (("dose", "text"), [[3.0, 6.0], [1.0, 0.0]]),
        },
        coords={"technique": ("dose", ["a", "a"]), "strength": ("dose", [1.0, 0.5])},
    )
    np.testing.assert_allclose(price(line, "a", 2.0), [2.0, 3.0])  # half way between the doses
    np.testing.assert_allclose(price(line, "a", 0.5), [0.5, 0.0])
    assert np.isnan(price(line, "a", 9.0)).all()
    with pytest.raises(BadInput, match="take one of"):
        price(line, "b", 1.0)
    with pytest.raises(BadInput, match="no strengths for 'v'"):
        doses(model, {"v": lambda a: rr.edits(v, 1, a)}, {}, LISTS, [GOOD[0]])


def test_what_cannot_work_is_refused(toy: Toy) -> None:
    model = toy("llama")
    v = rr.vectors(model, GOOD, BAD)
    with pytest.raises(UnknownName, match="contrast"):
        rr.vectors(model, GOOD, BAD, "contrst")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="both classes need some"):
        rr.vectors(model, GOOD, [])
    with pytest.raises(BadInput, match="in both classes"):
        rr.vectors(model, GOOD, [*BAD, GOOD[0]])
    with pytest.raises(BadInput, match="takes pairs"):
        rr.vectors(model, GOOD, BAD[:2], "pca")
    with pytest.raises(BadInput, match="layer=7"):
        rr.edits(v, 7)
    with pytest.raises(BadInput, match="finite"):
        rr.edits(v, 1, float("inf"))
    with pytest.raises(BadInput, match="none of the choices"):
        rr.sweep(model, GOOD[:1], ["man"], WORDS, v, 1, [0])
    with pytest.raises(BadInput, match="one for each"):
        rr.sweep(model, GOOD, WORDS[:1], WORDS, v, 1, [0])
    with pytest.raises(BadInput, match="tokens"):
        rr.sweep(model, GOOD[:1], ["Mary John"], ["Mary John", "king"], v, 1, [0])
    with pytest.raises(BadInput, match="alphas is empty"):
        rr.sweep(model, GOOD, WORDS, WORDS, v, 1, [])
    with pytest.raises(BadInput, match="wanted words"):
        log_odds(model, Lists(("the man",), ("zebra",), ("king",)))
    with pytest.raises(BadInput, match="both lists"):
        log_odds(model, Lists(("the man",), ("king",), ("king",)))
    with pytest.raises(BadInput, match="one token"):
        losses(model, ["Mary"])


def test_questions_hold_the_same_words_in_both_classes(toy: Toy) -> None:
    asked = examples.Questions(("hot cold, big", "hot cold, up"), (" small", " down"))
    assert asked.answered() == ["hot cold, big small", "hot cold, up down"]
    assert asked.mistaken() == ["hot cold, big down", "hot cold, up small"]
    assert asked.choices == (" down", " small")
    assert asked.part(1, 2).prompts == ("hot cold, up",)
    with pytest.raises(BadInput, match="words"):
        examples.opposites(toy("llama"), 36)


def test_moods_and_sides_share_no_text_and_no_word_of_class() -> None:
    for made in (examples.moods(8), examples.sides(lw.tasks.concept("sentiment", 64), 8)):
        texts = [*made.source, *made.target, *made.held_source, *made.held_target]
        assert len(texts) == len(set(texts)) == 32
    pairs = zip(made.source, made.target)
    assert all(a.split()[:-1] == b.split()[:-1] and a != b for a, b in pairs)
    ends = [{t.split()[-1] for t in part} for part in (made.source, made.held_source)]
    assert not ends[0] & ends[1]
    kept = made.unseen(examples.Lists(("a",), ("zebra", made.target[0].split()[-1][:-1]), ("x",)))
    assert kept.wanted == ("zebra",)
    with pytest.raises(BadInput, match="1 to 8"):
        examples.moods(9)
    with pytest.raises(BadInput, match="smaller n"):
        examples.sides(lw.tasks.concept("sentiment", 16), 8)
    with pytest.raises(BadInput, match="every word"):
        made.unseen(examples.Lists(("a",), (made.target[0].split()[1],), ("x",)))
