"""Several threads on one module: each gets its own right numbers, because a lock is held.

nnsight's interleaving is not thread-safe, and a plain forward pass of a wrapped module in another
thread is enough to disturb a trace. Threads are switched a hundred times as often as usual here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.models import toys
from lwlab.tracing import _nnsight, engine, lock

# Of one length, so that numbers which end up with another prompt still fit.
PROMPTS = [
    "the dog saw a man",
    "Mary went to the store",
    "John had the red book",
    "a cat is in Paris",
]
Work = Callable[[lw.Model, int], Any]


def cache(model: lw.Model, i: int) -> Any:
    got = lw.cache(model, PROMPTS[i], ["resid_post", "final_norm", "logits"])
    return np.concatenate([array.values.ravel() for array in got.values()])


def pattern(model: lw.Model, i: int) -> Any:
    return lw.cache(model, PROMPTS[i], "attn_pattern").attn_pattern


def patch(model: lw.Model, i: int) -> Any:
    got = lw.patch(model, PROMPTS[i], {"resid_pre.1": lambda h: h * (i + 2)}, read="resid_post")
    return np.concatenate([got.logits.values.ravel(), got.resid_post.values.ravel()])


def ablate(model: lw.Model, i: int) -> Any:
    return lw.ablate(model, [PROMPTS[i], PROMPTS[i - 1]], f"head_out.1.{i}", "mean").logits


def grads(model: lw.Model, i: int) -> Any:
    return lw.grads(model, PROMPTS[i], lambda z: z[:, i], "resid_pre").resid_pre


def rules(model: lw.Model, i: int) -> Any:
    with lw.rules(model) as ruled:
        return lw.grads(ruled, PROMPTS[i], lambda z: z[:, i], "resid_pre").resid_pre


def chain(model: lw.Model, i: int) -> Any:
    return lw.chain(model, PROMPTS[i], [0, i % 3, 2]).logits


def generate(model: lw.Model, i: int) -> Any:
    return lw.generate(model, PROMPTS[i], 3, {"resid_pre.1": lambda h: h * (i + 2)}).ids


def plain(model: lw.Model, i: int) -> Any:
    with lock(model), torch.no_grad():
        return model.module(**engine.batch(model, PROMPTS[i]).inputs).logits


def raw(model: lw.Model, i: int) -> Any:
    with lock(model), torch.no_grad(), model.nn.trace(PROMPTS[i]):
        h = model.nn.transformer.h[1].output.save()
    return h


def unembed(model: lw.Model, i: int) -> Any:
    return model.unembed(torch.full((9, 32), i + 1.0)).detach()


def perplexity(model: lw.Model, i: int) -> Any:
    return lw.tasks.perplexity(model, PROMPTS[i]).nll


def lens(model: lw.Model, i: int) -> Any:
    return lw.depth.lens_distance(model, PROMPTS[i]).kl


def wrap(model: lw.Model, i: int) -> Any:
    another = lw.wrap(model.module, tokenizer=model.tokenizer)
    return lw.cache(another, PROMPTS[i], "resid_post").resid_post


WORK: list[Work] = [
    cache, pattern, patch, ablate, grads, rules, chain, generate, plain, raw, unembed, perplexity,
    lens, wrap,
]  # fmt: skip


def race(jobs: list[Callable[[], Any]], rounds: int) -> dict[str, int]:
    """Run each job in a thread of its own; count what differs from a run alone.

    Each runs until all have run `rounds` times, so that quick jobs meet slow ones.
    """
    alone = [np.asarray(job()) for job in jobs]
    done = [0] * len(jobs)
    trouble: dict[str, int] = {}
    together = threading.Barrier(len(jobs))

    def run(i: int) -> None:
        together.wait()
        while min(done) < rounds:
            try:
                right = np.array_equal(np.asarray(jobs[i]()), alone[i])
                said = "" if right else "wrong numbers"
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            if said:
                trouble[said] = trouble.get(said, 0) + 1
            done[i] += 1

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        if thread.is_alive():
            trouble["stuck"] = trouble.get("stuck", 0) + 1
    return trouble


def jobs_of(work: Work, models: list[lw.Model], threads: int = 4) -> list[Callable[[], Any]]:
    """Every other thread does `work`, the others trace; they take the models in turns."""

    def job(i: int) -> Callable[[], Any]:
        one, model = (work, cache)[i % 2], models[i // 2 % len(models)]
        return lambda: one(model, i)

    return [job(i) for i in range(threads)]


@pytest.fixture(scope="module")
def model() -> lw.Model:
    return lw.wrap(toys.tiny("gpt2")[0], tokenizer=toys.tokenizer())


@pytest.fixture(autouse=True)
def _hurry() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("work", WORK)
def test_four_threads_on_one_model_get_their_own_numbers(work: Work, model: lw.Model) -> None:
    assert race(jobs_of(work, [model]), rounds=10) == {}


@pytest.mark.parametrize("work", [cache, patch, grads, plain, wrap])
def test_two_wrappers_of_one_module_share_its_lock(work: Work, model: lw.Model) -> None:
    other = lw.wrap(model.module, tokenizer=model.tokenizer)
    assert other.nn is not model.nn
    assert lock(other) is lock(model) is lock(model.module)
    assert race(jobs_of(work, [model, other]), rounds=10) == {}


def test_models_of_their_own_need_no_common_lock(model: lw.Model) -> None:
    def one(arch: str) -> lw.Model:
        return lw.wrap(toys.tiny(arch)[0], tokenizer=toys.tokenizer())

    models = [model, one("gpt2"), one("llama"), one("gemma2")]
    assert len({id(lock(m)) for m in models}) == 4

    def job(i: int) -> Callable[[], Any]:
        return lambda: np.stack([work(models[i], i) for work in (grads, rules)])

    assert race([job(i) for i in range(4)], rounds=5) == {}


def test_the_lock_is_held_while_an_edit_runs_and_may_be_taken_again_there(model: lw.Model) -> None:
    taken = []

    def elsewhere() -> None:
        if free := lock(model).acquire(timeout=0.05):
            lock(model).release()
        taken.append(free)

    def edit(h: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        model.unembed(h)  # takes the lock again, in the thread that holds it
        return h

    lw.patch(model, PROMPTS[0], {"resid_pre.1": edit}, compare=False)
    elsewhere()
    assert taken == [False, True]


def test_an_error_in_one_thread_leaves_the_lock_free_for_others(model: lw.Model) -> None:
    def fail(h: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("mine")

    def broken() -> Any:
        with pytest.raises(ZeroDivisionError):
            lw.patch(model, PROMPTS[1], {"resid_pre.1": fail})
        return 0

    assert race([broken, lambda: cache(model, 0), broken, lambda: grads(model, 2)], 10) == {}


def unlocked() -> None:
    """Print what goes wrong without the lock, by work. Runs in a process of its own."""
    torch.set_num_threads(1)
    sys.setswitchinterval(5e-5)
    found = {}
    for work in WORK:
        model = lw.wrap(toys.tiny("gpt2")[0], tokenizer=toys.tokenizer())
        _nnsight._LOCKS[model.module] = contextlib.nullcontext()  # type: ignore[assignment]
        trouble: dict[str, int] = {}
        for _ in range(20):
            if trouble := race(jobs_of(work, [model], threads=2), rounds=10):
                break
        found[work.__name__] = trouble
    print(json.dumps(found))


def test_without_the_lock_every_kind_of_work_is_disturbed() -> None:
    code = "import test_threads; test_threads.unlocked()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {work.__name__ for work in WORK}
    assert all(found.values()), found
