"""What every task promises, held against a naive reading of the tokenizer's output."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lwlab import tasks
from lwlab.errors import BadInput, UnknownName

MAKERS = {
    **{
        f"ioi-{c}-{o}": lambda m, c=c, o=o, **k: tasks.ioi(
            m, corruption=c, order=o, template="went", **k
        )
        for c in ("s2", "abc")
        for o in ("mixed", "abba", "baba")
    },
    **{f"ioi-{t}": lambda m, t=t, **k: tasks.ioi(m, template=t, **k) for t in tasks.IOI_TEMPLATES},
    "greater_than": tasks.greater_than,
    "induction-words": tasks.induction,
    "induction-twice": lambda m, **k: tasks.induction(m, repeats=2, length=5, **k),
    "induction-tokens": lambda m, **k: tasks.induction(m, kind="tokens", **k),
    "add": tasks.arithmetic,
    "subtract": lambda m, **k: tasks.arithmetic(m, op="-", shots=0, **k),
    "multiply": lambda m, **k: tasks.arithmetic(m, op="*", **k),
    "country_capital": tasks.country_capital,
    **{
        f"{r}-{t}": lambda m, r=r, t=t, **k: tasks.facts(m, r, template=t, **k)
        for r, relation in tasks.RELATIONS.items()
        for t in relation.templates
    },
    **{
        f"pronouns-{t}": lambda m, t=t, **k: tasks.pronouns(m, template=t, **k)
        for t in tasks.PRONOUN_TEMPLATES
    },
    **{
        f"agreement-{t}": lambda m, t=t, **k: tasks.agreement(m, template=t, **k)
        for t in tasks.AGREEMENT_TEMPLATES
    },
    "agreement-same": lambda m, **k: tasks.agreement(m, attractor="same", **k),
}
# The toy tokenizer reads no words with a leading space, so it has no such vocabulary entries.
TOY = {k: v for k, v in MAKERS.items() if k != "induction-tokens"}
MIRRORED = ("ioi-s2-mixed", "induction", "add", "sub", "mul", "country", "pronouns-") + tuple(
    tasks.RELATIONS
)


def promises(task, tokenizer, n, seed):
    """Check a task by tokenizing each of its texts anew and comparing token by token."""
    assert len(task) == n == len(task.clean) == len(task.corrupt) == len(task.answers)
    assert task.seed == seed
    assert len(set(zip(task.clean, task.corrupt))) == n, "prompts repeat"
    assert task.equal_length
    for i in range(n):
        clean = tokenizer(task.clean[i])["input_ids"]
        corrupt = tokenizer(task.corrupt[i])["input_ids"]
        assert len(clean) == len(corrupt) == int(task.lengths[i])
        differ = [t for t in range(len(clean)) if clean[t] != corrupt[t]]
        assert differ
        assert set(differ) <= {int(task.positions[p][i]) for p in task.changed}
        assert int(task.positions["END"][i]) == len(clean) - 1
        for words, table in ((task.answers, task.answer_sets), (task.foils, task.foil_sets)):
            found = [x for x in table[i].tolist() if x >= 0]
            for word, token in zip(words[i].split("|"), found, strict=True):
                assert tokenizer(task.clean[i] + word)["input_ids"] == [*clean, token]
        members = [set(t[i].tolist()) - {-1} for t in (task.answer_sets, task.foil_sets)]
        assert not members[0] & members[1]
    for where in task.positions.values():
        assert where.shape == (n,)


@pytest.mark.parametrize("maker", TOY.values(), ids=TOY.keys())
@pytest.mark.parametrize("n", [1, 6, 7])
def test_twins_align_and_answers_are_single_tokens(maker, n, tokenizer):
    promises(maker(tokenizer, n=n, seed=3), tokenizer, n, 3)


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())
def test_the_real_tokenizer_fits_every_task(maker, smollm2):
    promises(maker(smollm2, n=16, seed=1), smollm2.tokenizer, 16, 1)


@pytest.mark.parametrize("name", [k for k in TOY if k.startswith(MIRRORED)])
def test_pairs_corrupt_each_other(name, tokenizer):
    task = TOY[name](tokenizer, n=6)
    for i in range(0, 6, 2):
        assert task.clean[i] == task.corrupt[i + 1]
        assert task.corrupt[i] == task.clean[i + 1]
        assert task.answers[i] == task.foils[i + 1]
        assert task.groups[i] == task.groups[i + 1]
    assert task.groups.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("maker", TOY.values(), ids=TOY.keys())
def test_swapping_answer_and_foil_flips_the_metric(maker, tokenizer):
    task = maker(tokenizer, n=4)
    logits = torch.randn(4, len(tokenizer), generator=torch.Generator().manual_seed(1))
    swapped = tasks.metrics.measure(task.measure, task.foil_sets, task.answer_sets)
    torch.testing.assert_close(task.metric(logits), -swapped(logits))


@pytest.mark.parametrize("maker", TOY.values(), ids=TOY.keys())
def test_seeds_decide_the_prompts(maker, make):
    tokenizer = make()
    first, again, other = (maker(tokenizer, n=8, seed=s) for s in (5, 5, 6))
    assert first.clean == again.clean
    assert first.corrupt == again.corrupt
    assert first.clean != other.clean


def test_seeds_hold_across_processes(make):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from conftest import make_tokenizer; from lwlab import tasks; t = make_tokenizer();"
        "print([f(t, n=8, seed=2).clean for f in (tasks.ioi, tasks.greater_than, tasks.induction,"
        "tasks.arithmetic, tasks.country_capital, tasks.pronouns, tasks.agreement)])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = make()
    makers = (
        *(tasks.ioi, tasks.greater_than, tasks.induction, tasks.arithmetic),
        *(tasks.country_capital, tasks.pronouns, tasks.agreement),
    )
    assert out.strip() == str([f(here, n=8, seed=2).clean for f in makers])


def test_a_start_token_shifts_every_position_by_one(make):
    plain, shifted = (tasks.ioi(make(start=s), n=6) for s in (False, True))
    assert plain.clean == shifted.clean
    for name, where in plain.positions.items():
        assert torch.equal(where + 1, shifted.positions[name]), name


def test_a_model_and_its_tokenizer_make_the_same_task(tiny):
    assert tasks.ioi(tiny).clean == tasks.ioi(tiny.tokenizer).clean


@pytest.mark.parametrize("index", [2, slice(1, 5, 2), [4, 0], torch.tensor([True] + [False] * 5)])
def test_a_subset_is_those_prompts(index, tokenizer):
    task = tasks.ioi(tokenizer, n=6)
    rows = torch.arange(6)[index].reshape(-1).tolist()
    part = task.subset(index)
    assert part.clean == tuple(task.clean[i] for i in rows)
    assert part.answer_ids.tolist() == task.answer_ids[rows].tolist()
    assert part.positions["S1"].tolist() == task.positions["S1"][rows].tolist()
    logits = torch.randn(6, len(tokenizer))
    assert torch.equal(part.metric(logits[rows]), task.metric(logits)[rows])


def test_a_subset_of_nothing_is_an_error(tokenizer):
    with pytest.raises(BadInput, match="no prompt of ioi is left"):
        tasks.ioi(tokenizer, n=2).subset([])
    with pytest.raises(BadInput, match="ioi has 2 prompts: index 2 is out of bounds"):
        tasks.ioi(tokenizer, n=2).subset(2)


def test_a_task_takes_another_metric_by_name(tokenizer):
    task = tasks.ioi(tokenizer, n=4)
    logits = torch.randn(4, len(tokenizer))
    p = logits.softmax(1)[range(4), task.answer_ids]
    torch.testing.assert_close(task.with_metric("log_prob").metric(logits), p.log())
    assert task.with_metric("log_prob").subset([0]).measure == "log_prob"
    with pytest.raises(UnknownName, match="no metric 'logprob'; did you mean 'log_prob'"):
        task.with_metric("logprob")


def test_sets_do_not_pass_for_single_answers(tokenizer):
    with pytest.raises(BadInput, match=r"greater_than has sets of answers.*answer_sets"):
        _ = tasks.greater_than(tokenizer, n=2).answer_ids


def test_the_table_has_a_row_a_prompt(tokenizer):
    frame = tasks.ioi(tokenizer, n=3).to_frame()
    assert list(frame.columns) == ["clean", "corrupt", "answers", "foils"]
    assert len(frame) == 3


def test_tokens_are_the_models(tiny):
    task = tasks.ioi(tiny, n=3)
    assert task.tokens(tiny).texts == task.clean
    assert task.tokens(tiny, "corrupt").texts == task.corrupt
