"""From a recipe to a trained model in the cache: once, with progress, and resumable."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lwlab import paths
from lwlab.errors import BadInput, Diverged, UnknownName, suggest
from lwlab.models import hub, stored
from lwlab.models.fetch import disk_errors, progress
from lwlab.models.loading import quiet

if TYPE_CHECKING:
    from lwlab.models.model import Model
    from lwlab.models.toys.recipe import Recipe

PREFIX = "toys/"
STATE = "state.pt"
Watch = Callable[[int, dict[str, float]], None]
#: Seconds of training that a killed run may lose.
SAVE_EVERY = 15.0


def find(name: str) -> type[Recipe]:
    """Return the recipe called `name` ("char-gpt2"); raises UnknownName."""
    from lwlab.models.toys import TABLE

    if name not in TABLE:
        raise UnknownName(f"no recipe of a toy is called {name!r}{suggest(name, TABLE, limit=40)}")
    entry = TABLE[name]
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    recipe: type[Recipe] = getattr(
        importlib.import_module(f"lwlab.models.toys.{module}"), attribute
    )
    return recipe


def trained(
    name: str, *, seed: int = 0, step: int | None = None, watch: Watch | None = None
) -> Model:
    """Return the toy `name` as a `Model`; the same as `lw.load(f"toys/{name}:{seed}@{step}")`.

    Trained first if it is not in the cache; `watch(step, numbers)` is then called after each step.
    Raises UnknownName, BadInput (a seed below 0, a step that the recipe does not keep), Diverged.
    """
    from lwlab.models.loading import load

    recipe = find(name)
    _check(recipe, seed, step)
    train(recipe, seed, watch=watch)
    return load(f"{PREFIX}{name}:{seed}" + ("" if step is None else f"@{step}"))


def history(name: str, *, seed: int = 0) -> dict[str, Any]:
    """Return what was recorded while the toy was trained (which is done first if need be).

    `steps` (dicts with `step`, `loss`, ... every few steps), `kept` (dicts with `step` and what the
    recipe measured there), `seconds`, `checksum` (of the last weights), `recipe`, `torch`.
    """
    found: dict[str, Any] = json.loads((train(find(name), seed) / "history.json").read_text())
    return found


def resolve(text: str, *, again: bool = False) -> Path:
    """Return the folder of `toys/NAME[:SEED][@STEP]`, trained first if it is not there.

    With `again` it is trained anew in any case.
    """
    rest, _, at = text.removeprefix(PREFIX).partition("@")
    name, _, seed = rest.partition(":")
    recipe = find(name)
    try:
        number, step = int(seed or 0), int(at) if at else None
    except ValueError:
        raise BadInput(
            f"{text!r}: toys are called toys/NAME, toys/NAME:SEED or toys/NAME@STEP"
        ) from None
    _check(recipe, number, step)
    folder = train(recipe, number, again=again) / f"step-{recipe.steps if step is None else step}"
    if stored.damage(folder):
        train(recipe, number, again=True)
    return folder


def train(
    recipe: type[Recipe], seed: int = 0, *, again: bool = False, watch: Watch | None = None
) -> Path:
    """Train by `recipe` unless that was done, and return the folder of the results.

    It holds `history.json` and one model folder a kept step. One torch thread, so that the same
    machine gives the same weights to the last bit. A run that is cut off is taken up again where
    its state was last saved (every 15 s); with `again` the model is trained anew. Raises Diverged
    when a loss stops being a number: nothing is kept then.
    """
    key = f"{recipe.name}-{seed}-{recipe.checksum()}"
    final = paths.models_dir() / "toys" / key
    if not again and (final / "history.json").exists():
        return final
    for parent in recipe.parents:
        train(find(parent))
    with disk_errors(final.parent), paths.lock(f"toy-{key}"):
        if not again and (final / "history.json").exists():  # another process has just made it
            return final
        work = final.with_name(f"{key}.part")
        if again:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        with _one_thread():
            _run(recipe, seed, work, watch)
        (work / STATE).unlink(missing_ok=True)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(work, final)
    return final


def _run(recipe: type[Recipe], seed: int, work: Path, watch: Watch | None) -> None:
    begun, made = time.perf_counter(), recipe(seed)
    record: dict[str, Any] = {"steps": [], "kept": [], "seconds": 0.0, "next": 0}
    if (work / STATE).exists():
        saved = torch.load(work / STATE, weights_only=False)
        made.module.load_state_dict(saved["module"])
        made.optimizer.load_state_dict(saved["optimizer"])
        made.restore(saved["state"])
        record = saved["record"]
    before, written = record["seconds"], time.perf_counter()
    title = f"training {PREFIX}{recipe.name}" + (f":{seed}" if seed else "") + ", this once"
    with progress(title, recipe.steps, unit="steps") as seen:
        for i in range(record["next"], recipe.steps):
            if i in recipe.keep:
                _keep(made, work, i, record)
            made.module.train()
            numbers = made.step(i)
            if not all(math.isfinite(v) for v in numbers.values()):
                shutil.rmtree(work, ignore_errors=True)
                raise Diverged(
                    f"toys/{recipe.name} diverged at step {i} of {recipe.steps} (seed {seed}): "
                    f"{numbers}. Nothing was kept; a lower learning rate or another seed may work"
                )
            if i % recipe.every == 0 or i + 1 == recipe.steps:
                record["steps"].append({"step": i, **numbers})
            if watch is not None:
                watch(i, numbers)
            seen(i + 1)
            record["next"] = i + 1
            record["seconds"] = before + time.perf_counter() - begun
            if time.perf_counter() - written > SAVE_EVERY:
                _save(made, work, record)
                written = time.perf_counter()
    _keep(made, work, recipe.steps, record)
    facts = {
        **{"name": recipe.name, "seed": seed, "recipe": recipe.checksum()},
        **{"summary": recipe.summary, "torch": torch.__version__},
        **{"seconds": round(record["seconds"], 1)},
        **{"checksum": stored.checksum(work / f"step-{recipe.steps}")},
        **{"steps": record["steps"], "kept": record["kept"]},
    }
    paths.write_atomic(work / "history.json", json.dumps(facts, indent=1) + "\n")


def _keep(made: Recipe, work: Path, step: int, record: dict[str, Any]) -> None:
    """Measure, and write the model as transformers reads it."""
    made.module.eval()
    with torch.no_grad():
        numbers = made.measure()
    record["kept"] = [k for k in record["kept"] if k["step"] != step] + [{"step": step, **numbers}]
    with paths.publish_dir(work / f"step-{step}") as folder, quiet():
        save: Any = made.module
        save.save_pretrained(folder)
        if made.tokenizer is not None:
            made.tokenizer.save_pretrained(folder)
        at = "" if step == made.steps else f"@{step}"
        stored.write_manifest(
            folder,
            name=f"{PREFIX}{made.name}" + (f":{made.seed}" if made.seed else "") + at,
            kind=hub.kind_of(folder),
            licence="MIT",
            source=f"trained here by the recipe {made.name} ({made.checksum()}), seed {made.seed}",
        )


def _save(made: Recipe, work: Path, record: dict[str, Any]) -> None:
    held = io.BytesIO()
    torch.save(
        {
            **{"module": made.module.state_dict(), "optimizer": made.optimizer.state_dict()},
            **{"state": made.state(), "record": record},
        },
        held,
    )
    paths.write_atomic(work / STATE, held.getvalue())


def _check(recipe: type[Recipe], seed: int, step: int | None) -> None:
    if seed < 0:
        raise BadInput(f"seed={seed}: seeds of toys are 0, 1, 2, ...")
    if step is not None and step not in (*recipe.keep, recipe.steps):
        kept = ", ".join(map(str, (*recipe.keep, recipe.steps)))
        raise BadInput(f"toys/{recipe.name} keeps its weights at the steps {kept}, not at {step}")


@contextmanager
def _one_thread() -> Iterator[None]:
    # Sums over several threads are taken in another order at each run.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
