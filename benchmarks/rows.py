"""One row of a sweep against a bare papermill run of the same notebook with the same parameters.

CPU seconds of this process (client, scheduler and worker are threads of it here) and of the kernel,
so that everything a sweep adds is counted: Dask, locks, keys, checks, records.
"""

from __future__ import annotations

import atexit
import resource
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lwlab.bench.protocol import Case, Timed
from lwlab.claims import read_claims
from lwlab.notebook import parameters, source_hash
from lwlab.runs import rows
from lwlab.runs.cluster import CONFIG
from lwlab.runs.run import effective, open_notebook

EMPTY = """\
# %% tags=["parameters"]
seed: int = 0

# %%
import lwlab as lw
lw.claim("empty.seed", measured=seed, expect=">= 0", kind="exact")
"""


@cache
def client() -> Any:
    """One worker, a thread of this process."""
    import dask
    from distributed import Client, LocalCluster

    dask.config.set(CONFIG)  # as a sweep's own workers have it
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False,
        dashboard_address=None,
    )  # fmt: skip
    found = Client(cluster, set_as_default=False)
    atexit.register(lambda: (found.close(), cluster.close()))
    return found


def spent(run: Callable[[], Any]) -> Timed:
    """CPU seconds of this process and of the kernels that ended meanwhile."""

    def now() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    begin = now()
    result = run()
    # paper claims may be timings; exact ones must come out the same
    return Timed({c["id"]: c["measured"] for c in result if c["kind"] == "exact"}, now() - begin)


def case(title: str, target: str | Path, given: dict[str, Any], rounds: int) -> Case:
    """Compare both ways of running `target`."""
    import nbformat
    import papermill

    header, nb = open_notebook(target)
    folder = Path(tempfile.mkdtemp(prefix="lwlab-rows-"))
    source = folder / "source.ipynb"
    nbformat.write(nb, source)
    values = effective(parameters(nb) or [], given)

    def row() -> Timed:
        digest = source_hash(nb)
        model = str(values.get("model", ""))
        task = rows.Task(
            key=rows.row_key(digest, values, ""), id=header.id, source=digest,
            notebook=str(source), given=given, values=values, model=model, checksum="",
            folder=str(folder), timeout=None, memory_mb=20_000.0, topic="rows", again=True,
        )  # fmt: skip

        def run() -> Any:
            told = client().submit(rows.work, task, pure=False).result()
            return told["record"]["claims"]

        return spent(run)

    def bare() -> Timed:
        out = folder / "bare.ipynb"

        def run() -> Any:
            papermill.execute_notebook(
                str(source), str(out), parameters=given, kernel_name="python3",
                progress_bar=False, log_output=False,
            )  # fmt: skip
            return read_claims(out)

        return spent(run)

    client()
    return Case(
        title=title, subject="row of a sweep", ways={"row of a sweep": row, "papermill": bare},
        targets={"papermill": 0.909},  # at most a tenth more
        rounds=rounds,
    )  # fmt: skip


def empty() -> Case:
    """A notebook that does nothing: the worst case, all of it is overhead."""
    path = Path(tempfile.mkdtemp(prefix="lwlab-rows-")) / "empty.py"
    path.write_text(EMPTY)
    return case("an empty notebook", path, {"seed": 1}, 7)


def relp() -> Case:
    """RelP on the default model, its quick profile with 4 prompts."""
    return case("the RelP notebook, n=4", "relp", {"n": 4}, 3)


CASES = {"empty": empty, "relp": relp}
