"""Lens and erasure: exact ends, formulas by plain hooks, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from depth_by_hand import TEXT, hooked

import lwlab as lw
from lwlab.depth import lens_distance, token_erasure
from lwlab.depth.erasure import answer_positions, mean_streams
from lwlab.errors import BadInput, MissingSite
from lwlab.models import toys

SHORT = "the king saw the queen"
ARCHS = ("llama", "gpt2", "gemma2", "gpt_neox")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_lens_ends_at_the_models_own_prediction(toy: Any, arch: str) -> None:
    model = toy(arch)
    r = lens_distance(model, [TEXT, SHORT], k=3)
    last = r.sel(layer=model.n_layers)
    assert float(abs(last.kl).max()) == 0.0
    assert float(last.overlap.min()) == 1.0
    assert float(r.kl.min()) >= -1e-6
    assert float(r.sel(layer=0).kl.mean()) > 0.01
    n = int(model.tokens(SHORT).lengths[0])
    assert bool(r.kl[1, :, n - 1 :].isnull().all())
    alone = lens_distance(model, SHORT, k=3)
    np.testing.assert_allclose(r.kl[1, :, : n - 1], alone.kl[0], atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_lens_distances_equal_their_formulas(toy: Any, arch: str) -> None:
    model, k = toy(arch), 4
    with torch.no_grad():
        run = hooked(model, TEXT, {})
        norm = model.module.get_submodule(model.anatomy.final_norm)
        z = model.module.get_submodule(model.anatomy.unembed)(norm(run["pre"]))
        cap = model.anatomy.softcap
        z = z if cap is None else cap * torch.tanh(z / cap)
    p, q = z.double().softmax(-1), run["logits"].double().softmax(-1)
    r = lens_distance(model, TEXT, k=k, front=2, every=3)
    for layer in range(model.n_layers):
        for j, position in enumerate(r.position.values):
            a, b = p[layer, position], q[position]
            kl = float((a * (a / b).log()).sum())
            shared = set(a.topk(k).indices.tolist()) & set(b.topk(k).indices.tolist())
            assert float(r.kl[0, layer, j]) == pytest.approx(kl, abs=1e-4)
            assert float(r.overlap[0, layer, j]) == pytest.approx(len(shared) / k)
    assert r.position.values.tolist() == [2, 5, 8, 11]


def test_the_lens_refuses_what_cannot_work(toy: Any) -> None:
    for arguments in ({"k": 0}, {"k": 1000}, {"front": 14}, {"every": 0}, {"front": -1}):
        with pytest.raises(BadInput):
            lens_distance(toy("llama"), TEXT, **arguments)
    module, _ = toys.tiny("bert")
    with pytest.raises(MissingSite, match="unembedding"):
        lens_distance(lw.wrap(module), torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize("arch", ARCHS)
def test_erasure_equals_one_hooked_forward_for_each_pair(toy: Any, arch: str) -> None:
    model, answer = toy(arch), " to John"
    prompt = TEXT.removesuffix(answer)
    reference = [SHORT, "Paris is the capital of France"]
    with torch.no_grad():
        runs = [hooked(model, text, {}) for text in reference]
        streams = [torch.cat([run["pre"], run["block"][-1:]]) for run in runs]
        mean = torch.cat(streams, 1).mean(1)
        torch.testing.assert_close(mean_streams(model, reference), mean, atol=1e-5, rtol=1e-4)
        base = hooked(model, TEXT, {})["logits"].softmax(-1)
        n, layers = len(base), model.n_layers
        want = torch.zeros(layers, n)
        for layer in range(1, layers + 1):
            for t in range(n):

                def erase(x: torch.Tensor, layer: int = layer, t: int = t) -> torch.Tensor:
                    x = x.clone()
                    x[:, t] = mean[layer]
                    return x

                p = hooked(model, TEXT, {("block", layer - 1): erase})["logits"].softmax(-1)
                # the two positions whose next tokens are "to" and "John"
                want[layer - 1, t] = (p - base).norm(dim=-1)[n - 3 : n - 1].max()
    r = token_erasure(model, prompt, answer, reference=reference, max_rows=20)
    np.testing.assert_allclose(r.effect[1:], want, atol=2e-5)
    assert r.effect.dims == ("layer", "position")
    assert r.layer.values.tolist() == list(range(layers + 1))
    assert r.token_str.values.tolist() == TEXT.split()


def test_a_token_after_the_answer_or_past_its_last_reader_does_not_matter(toy: Any) -> None:
    model = toy("llama")
    r = token_erasure(model, "Mary gave a book to", " John", reference=[SHORT]).effect
    assert float(r.sel(position=5).max()) < 1e-6  # the answer itself comes after the prediction
    assert float(r.sel(layer=3, position=slice(0, 3)).max()) < 1e-6  # only the last stream is read
    assert float(r.sel(layer=3, position=4)) > 0
    some = token_erasure(model, "Mary gave a book to", " John", reference=[SHORT], layers=[1, 3])
    np.testing.assert_allclose(some.effect, r.sel(layer=[1, 3]), atol=1e-6)


def test_answer_positions_are_those_that_predict_it(toy: Any) -> None:
    model = toy("llama")
    assert answer_positions(model, "Mary gave a book to", " John and Anna").tolist() == [4, 5, 6]
    assert answer_positions(model, "Mary gave a", "").tolist() == [2]


def test_erasure_refuses_what_cannot_work(toy: Any) -> None:
    model = toy("llama")
    with pytest.raises(BadInput, match="non-empty"):
        token_erasure(model, SHORT, reference=[])
    with pytest.raises(BadInput, match=r"0\.\.3"):
        token_erasure(model, SHORT, reference=[TEXT], layers=[4])
    with pytest.raises(BadInput, match="tokens of"):
        token_erasure(model, "the ki", "ng", reference=[TEXT])
