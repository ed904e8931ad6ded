"""Sweeps against the slow way: a plain hook and a whole forward pass for each cell.

The loop below knows nothing of how a sweep works: it runs the bare module on the padded batch, sets
one hook, puts values it has read by hooks into one token of each prompt, and asks the task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from reference import DECODERS, forward

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models import toys
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Side, Tokens
from lwlab.tasks import Task

# Twins that differ from the first token on, from the third, and in the last alone; the prompts
# have six, four and five tokens.
CLEAN = ("Mary saw the big red dog", "he gave a book", "Paris or Rome was in")
CORRUPT = ("John took a new old cat", "he gave the drink", "Paris or Rome was at")
ANSWERS, FOILS = (" and", " to", " France"), (" but", " with", " Italy")
ARCHS = DECODERS
BLOCKS = 3
ENGINES = ["packed", "resume"]
# What an engine cannot do, and says so before it starts.
REFUSED: dict[str, set[str]] = {
    "packed": {"opt_post_norm", "mixtral", "qwen2_moe", "qwen3_moe", "mamba"},
    "resume": set(),
}
TOLERANCE = 1e-4
Read = dict[tuple[str, int], torch.Tensor]
New = Callable[[str, int, torch.Tensor], torch.Tensor]


@cache
def model_of(arch: str) -> lw.Model:
    return lw.wrap(toys.tiny(arch)[0], tokenizer=toys.tokenizer(), name=arch)


def question(model: lw.Model, rows: tuple[int, ...] = (0, 1, 2)) -> Task:
    def ids(words: tuple[str, ...]) -> torch.Tensor:
        return torch.tensor([[model.tokenizer(w.strip())["input_ids"][0]] for w in words])

    lengths = torch.tensor([len(t.split()) for t in CLEAN])
    return Task(
        "hand-made", CLEAN, CORRUPT, ANSWERS, FOILS, ids(ANSWERS), ids(FOILS),
        {"END": lengths - 1}, ("END",), torch.arange(3), ("",) * 3, lengths,
    ).subset(list(rows))  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Padded(Task):
    """The same question; its tokens come padded on one side."""

    side: Side = "left"

    def tokens(self, model: Any, which: Any = "clean") -> Tokens:
        return model.tokens(list(self.clean if which == "clean" else self.corrupt), self.side)


def sites_of(model: lw.Model) -> list[str]:
    """Every site with a value at each layer and position."""
    return [
        s for s in model.sites() if SITES[s].scope == "layer" and SITES[s].dims[0] == "position"
    ]


def unfolded(values: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """OPT hands its MLP [prompts * columns, features]."""
    n, width = tokens.ids.shape
    return values if len(values) == n else values.view(n, width, *values.shape[1:])


def parts_of(model: lw.Model, site: str) -> list[Any]:
    """What a unit of the site is, on the axis after the position: all, a head, some neurons."""
    if heads := model.anatomy.heads(site):
        return list(range(heads))
    if "neuron" in SITES[site].dims:
        edges = np.linspace(0, model.d_mlp or 0, BLOCKS + 1).round().astype(int)
        return [slice(a, b) for a, b in pairwise(edges)]
    return [slice(None)]


@torch.no_grad()
def read(model: lw.Model, tokens: Tokens, sites: list[str]) -> Read:
    """Every site at every layer, [prompts, columns, ...]."""
    at = [Address(s, i) for s in sites for i in range(model.n_layers)]
    _, found = forward(model, tokens, at)
    return {(a.site, int(a.layer or 0)): unfolded(v, tokens) for a, v in found.items()}


@torch.no_grad()
def scored(model: lw.Model, task: Task, tokens: Tokens, edit: Any = None) -> np.ndarray[Any, Any]:
    z, _ = forward(model, tokens, edit=edit)
    ends = tokens.offsets + tokens.lengths - 1
    return task.metric(z[torch.arange(len(z)), ends]).numpy()


def naive(
    model: lw.Model,
    task: Task,
    tokens: Tokens,
    new: New,
    sites: list[str],
    layers: list[int] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Site -> m(edited) - m(base), [prompt, layer, position, unit]; NaN where a prompt is short.

    `new(site, layer, old)` gives the values to put, in the layout of `old` [prompts, columns, ...].
    """
    base, plain = scored(model, task, tokens), read(model, tokens, sites)
    wanted = layers if layers is not None else list(range(model.n_layers))
    rows = torch.arange(len(tokens))
    out = {}
    for site in sites:
        parts = parts_of(model, site)
        table = np.full((len(tokens), len(wanted), int(tokens.lengths.max()), len(parts)), np.nan)
        for i, layer in enumerate(wanted):
            values = new(site, layer, plain[site, layer])
            for p in range(table.shape[2]):
                for u, part in enumerate(parts):
                    there = tokens.lengths > p
                    at = (rows[there], (tokens.offsets + p)[there])

                    def hook(old: torch.Tensor, at: Any = at, part: Any = part) -> torch.Tensor:
                        edited = unfolded(old, tokens).clone()
                        cell = edited[at]
                        cell[:, part] = values[at][:, part]  # noqa: B023
                        edited[at] = cell
                        return edited.view_as(old)

                    got = scored(model, task, tokens, {Address(site, layer): hook})
                    table[there.numpy(), i, p, u] = (got - base)[there.numpy()]
        out[site] = table
    return out


def from_twins(model: lw.Model, tokens: Tokens, sites: list[str]) -> New:
    values = read(model, tokens, sites)
    return lambda site, layer, old: values[site, layer]


@cache
def patched(arch: str, into: str = "corrupt", side: Side = "right") -> dict[str, Any]:
    """The whole patching table of every site, the slow way."""
    model = model_of(arch)
    task, sites = question(model), sites_of(model)
    other = "clean" if into == "corrupt" else "corrupt"
    tokens = {k: model.tokens(list(getattr(task, k)), side) for k in (into, other)}
    return naive(model, task, tokens[into], from_twins(model, tokens[other], sites), sites)


def table(result: Any, site: str) -> np.ndarray[Any, Any]:
    """A sweep's variable as [prompt, layer, position, unit]."""
    values = result[site].values
    return values if values.ndim == 4 else values[..., None]


def compare(result: Any, truth: dict[str, Any]) -> float:
    """The largest difference; cells that do not exist must be missing in both."""
    assert set(result.data_vars) == {*truth, "base_metric"}
    worst = 0.0
    for site, want in truth.items():
        got = table(result, site)
        assert got.shape == want.shape, site
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=site)
        worst = max(worst, float(np.nanmax(np.abs(got - want))))
    return worst


def sweep(model: lw.Model, task: Task, **options: Any) -> Any:
    return lw.sweep(model, task, neuron_blocks=BLOCKS, **options)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_site_layer_position_and_head_is_patched_as_by_a_hook(arch: str) -> None:
    """Whatever engine is chosen, whether or not provable no-ops are skipped."""
    model = model_of(arch)
    task, truth = question(model), patched(arch)
    for skip in (True, False):
        result = sweep(model, task, sites=list(truth), skip=skip)
        assert compare(result, truth) <= TOLERANCE, result.attrs["engine"]
        cells = sum(int(np.isfinite(table(result, s)).sum()) for s in truth)
        assert result.attrs["cells"] == cells
        assert (result.attrs["skipped"] > 0) == skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("arch", ARCHS)
def test_an_engine_that_is_asked_for_serves_or_refuses(arch: str, engine: Any) -> None:
    model, truth = model_of(arch), patched(arch)
    if arch in REFUSED[engine]:
        with pytest.raises(BadInput, match=f"engine='{engine}' cannot serve this sweep"):
            sweep(model, question(model), sites=list(truth), engine=engine)
        return
    result = sweep(model, question(model), sites=list(truth), engine=engine)
    assert result.attrs["engine"] == engine
    assert compare(result, truth) <= TOLERANCE


@pytest.mark.parametrize("arch", ARCHS)
def test_the_plain_engine_gives_the_same(arch: str) -> None:
    model = model_of(arch)
    truth = {s: v[:, [1]][:, :, [3]] for s, v in patched(arch).items()}
    result = sweep(model, question(model), sites=list(truth), engine="plain", layers=1,
                   positions=[3])  # fmt: skip
    assert compare(result, truth) <= TOLERANCE


@pytest.mark.parametrize("arch", ["gpt2", "llama", "mistral", "gemma3", "gpt_neox", "opt"])
def test_padding_on_the_left_changes_nothing(arch: str) -> None:
    """Neither in the slow loop, on a batch padded there, nor for tokens that come so padded."""
    model, right, left = model_of(arch), patched(arch), patched(arch, side="left")
    assert max(float(np.nanmax(abs(left[s] - right[s]))) for s in right) <= TOLERANCE
    task = Padded(**vars(question(model)))
    assert not torch.equal(task.tokens(model).offsets, torch.zeros(3, dtype=torch.long))
    assert compare(sweep(model, task, sites=list(left)), left) <= TOLERANCE


@pytest.mark.parametrize("arch", ["gpt2", "qwen3", "gemma2", "phi"])
def test_corrupt_values_go_into_the_clean_run(arch: str) -> None:
    model, truth = model_of(arch), patched(arch, into="clean")
    result = sweep(model, question(model), sites=list(truth), into="clean")
    assert result.attrs["into"] == "clean"
    assert compare(result, truth) <= TOLERANCE
    other = patched(arch)
    assert max(float(np.nanmax(abs(truth[s] - other[s]))) for s in truth) > 100 * TOLERANCE


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "opt"])
def test_zeros_means_and_functions(arch: str) -> None:
    model = model_of(arch)
    task, sites = question(model), sites_of(model)
    tokens = model.tokens(list(task.clean))
    own = tokens.mask.bool()
    values = read(model, tokens, sites)
    edits: list[tuple[Any, New]] = [
        ("zero", lambda site, layer, old: torch.zeros_like(old)),
        ("mean", lambda site, layer, old: values[site, layer][own].mean(0).expand_as(old)),
        (lambda cells: 1 - 2 * cells, lambda site, layer, old: 1 - 2 * old),
    ]
    for i, (edit, new) in enumerate(edits):  # each at another layer
        truth = naive(model, task, tokens, new, sites, [i])
        got = sweep(model, task, sites=sites, edit=edit, layers=i)
        assert got.attrs["into"] == "clean"
        assert compare(got, truth) <= TOLERANCE, edit


def test_the_mean_of_other_prompts() -> None:
    model = model_of("llama")
    task, sites = question(model), sites_of(model)
    tokens, other = model.tokens(list(task.clean)), model.tokens(list(task.corrupt))
    values = read(model, other, sites)
    own = other.mask.bool()

    def new(site: str, layer: int, old: torch.Tensor) -> torch.Tensor:
        return values[site, layer][own].mean(0).expand_as(old)

    options: dict[str, Any] = {"edit": "mean", "reference": list(task.corrupt), "layers": [0, 2]}
    truth = naive(model, task, tokens, new, sites, [0, 2])
    assert compare(sweep(model, task, sites=sites, **options), truth) <= TOLERANCE


@pytest.mark.parametrize("arch", ["gpt2", "mistral"])
def test_two_prompts_that_resample_take_each_others_values(arch: str) -> None:
    model, sites = model_of(arch), sites_of(model_of(arch))
    task = question(model, (0, 0))
    task = replace(task, clean=(CLEAN[0], CORRUPT[0]), corrupt=(CORRUPT[0], CLEAN[0]))
    tokens = model.tokens(list(task.clean))
    values = read(model, tokens, sites)
    truth = naive(model, task, tokens, lambda s, i, old: values[s, i].flip(0), sites, [1])
    got = sweep(model, task, sites=sites, edit="resample", layers=1)
    assert compare(got, truth) <= TOLERANCE


def test_noise_is_as_large_as_asked_and_the_same_on_every_engine() -> None:
    """What noise does can be put back into a slow run: it is read where it was put."""
    model = model_of("llama")
    task, sites = question(model), ["resid_pre", "attn_out", "mlp_out"]
    options: dict[str, Any] = {"sites": sites, "edit": "noise", "seed": 3}
    runs = [sweep(model, task, **options, engine=e) for e in ("auto", "resume", "plain")]
    for other in runs[1:]:
        for s in sites:
            np.testing.assert_allclose(other[s], runs[0][s], atol=TOLERANCE)
    assert float(abs(runs[0].resid_pre).max()) > 100 * TOLERANCE
    again = sweep(model, task, **{**options, "seed": 4})
    assert float(abs(again.resid_pre - runs[0].resid_pre).max()) > 100 * TOLERANCE
    none = sweep(model, task, **options, scale=0.0)
    assert float(abs(none.resid_pre).max()) == 0.0
    small, double = (sweep(model, task, **options, scale=s).resid_pre for s in (1e-3, 2e-3))
    # Twice as little noise does half: the metric is smooth, and the noise is the same draw.
    big = abs(double) > 1e-3
    assert int(big.sum()) > 5
    assert float(abs(double / small - 2).where(big).max()) < 0.2


def products(model: lw.Model) -> dict[str, int]:
    """Operations of one row: its queries, keys and values, output of attention, and MLP."""
    c = model.module.config
    d, heads, width = model.d_model, model.n_heads, model.d_head
    kv = getattr(c, "num_key_value_heads", None) or heads
    matrices = 3 if hasattr(c, "hidden_activation") or c.model_type == "llama" else 2
    return {
        "q": 2 * d * heads * width, "kv": 4 * d * kv * width, "o": 2 * heads * width * d,
        "mlp": 2 * matrices * d * model.d_mlp, "pair": 4 * heads * width,
    }  # fmt: skip


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_rows_and_operations_are_those_of_the_formula(arch: str) -> None:
    """A branch of the packed engine holds the tokens from the edited one on; see the loop."""
    model = model_of(arch)
    task, n = question(model), model.n_layers
    c = products(model)
    fused = arch == "gpt2"  # queries, keys and values are one product
    answers = len({*task.answer_ids.tolist(), *task.foil_ids.tolist()})
    rows = flops = 0
    for length in task.lengths.tolist():
        pairs = c["pair"] * length
        for layer in range(n):
            for m in range(length, 0, -1):  # rows of a branch
                rows += (n - layer) * m
                last = c["q"] * (m if fused else 1) + c["kv"] * m
                if layer == n - 1:  # joins in the last layer: one row is projected
                    last = c["q"] + c["kv"]
                else:
                    flops += c["q"] + c["kv"] + m * (pairs + c["o"] + c["mlp"])
                    between = n - 2 - layer
                    flops += between * m * (c["q"] + c["kv"] + pairs + c["o"] + c["mlp"])
                flops += last + pairs + c["o"] + c["mlp"] + 2 * model.d_model * answers
    got = sweep(model, task, engine="packed", skip=False)
    assert (got.attrs["rows"], got.attrs["flops"]) == (rows, flops)
    plan = lw.sweep_plan(model, task, engine="packed", skip=False)
    assert (plan.rows, plan.flops) == (rows, flops)

    whole = resumed = copies = 0
    for length in task.lengths.tolist():
        block = length * (c["q"] + c["kv"] + c["o"] + c["mlp"] + c["pair"] * length)
        read = 2 * model.d_model * answers
        for layer in range(n):
            copies += length * (n - layer) * length
            resumed += length * ((n - layer) * block + read)
            whole += length * (n * block + 2 * model.d_model * model.d_vocab)
    got = sweep(model, task, engine="resume", skip=False)
    assert (got.attrs["rows"], got.attrs["flops"]) == (copies, resumed)
    assert plan.naive_flops == whole


def test_what_is_written_late_costs_one_row_in_its_own_layer() -> None:
    """Others see it in the next layer only; in the last layer only the last token counts."""
    model = model_of("llama")
    task, n = question(model), model.n_layers
    rows = sum(
        1 + (n - 1 - layer) * m
        for length in task.lengths.tolist()
        for layer in range(n)
        for m in range(1, length + 1)
    )
    for site in ("attn_out", "resid_mid", "mlp_out", "resid_post"):
        got = sweep(model, task, sites=site, engine="packed", skip=False)
        assert got.attrs["rows"] == rows, site
