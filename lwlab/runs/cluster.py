"""Where the rows of a sweep run: Dask workers on this machine, or those of a given scheduler."""

from __future__ import annotations

import contextlib
import logging
import socket
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lwlab import __version__
from lwlab.errors import BadInput, RunError
from lwlab.notebook import record
from lwlab.runs import rows

_WAIT = 10  # seconds to reach a scheduler
# A row runs twice at most: a worker killed by something else may deserve a second try, a row that
# kills its worker does not deserve a third. One row a worker, none queued there: what a dying
# worker takes with it is the row it was running.
CONFIG = {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.connect": f"{_WAIT}s",
}


def how_many(rows: int, need_mb: float) -> int:
    """Return the workers to start by default: a row each, a core each, and memory for all."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    room = psutil.virtual_memory().available / 2**20 * 0.9
    return max(1, min(rows, record.cores(), int(room // max(need_mb, 1.0))))


def share_mb(workers: int) -> float:
    """Return the megabytes a row may hold by default: nine tenths of the machine, shared out."""
    return float(record.hardware()["memory_mb"]) * 0.9 / workers


@contextlib.contextmanager
def local(workers: int, memory_mb: float, dashboard: bool) -> Iterator[Any]:
    """Yield the client of a cluster of processes on 127.0.0.1, one thread each.

    Raises
    ------
    RunError
        If the workers do not start.
    """
    import dask
    from distributed import Client, LocalCluster

    _refuse_inside_a_worker()
    with dask.config.set(CONFIG), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        try:
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
                dashboard_address="127.0.0.1:0" if dashboard else None,
                # of the worker itself; the kernel beside it is held to memory_mb by its own watch
                memory_limit=int(max(memory_mb, 1024) * 2**20), silence_logs=logging.CRITICAL,
            )  # fmt: skip
        except RuntimeError as e:
            raise RunError(
                f"the workers did not start ({e.__cause__ or e}). In a script, call sweep() under "
                "`if __name__ == '__main__':`, because each worker imports the script."
            ) from e
        try:
            with Client(cluster, set_as_default=False) as client:
                yield client
        finally:
            cluster.close()


def _refuse_inside_a_worker() -> None:
    import multiprocessing

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(
            "lwlab: sweep() was called while a worker imported this script; put the call under "
            "`if __name__ == '__main__':`."
        )


def _knock(address: str) -> None:
    """Open and close a plain connection: a Client that fails lingers, and complains at exit."""
    from distributed.comm import parse_address, parse_host_port

    scheme, place = parse_address(address)
    if scheme in ("tcp", "tls"):
        socket.create_connection(parse_host_port(place, 8786), timeout=_WAIT).close()


@contextlib.contextmanager
def remote(address: str) -> Iterator[Any]:
    """Yield a client of the scheduler at `address`, such as `tcp://10.0.0.5:8786`.

    Raises
    ------
    RunError
        If nothing answers there within ten seconds, or it has no workers.
    """
    from distributed import Client

    # distributed would log its own attempts at length
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        _knock(address)
        client = Client(address, timeout=_WAIT, set_as_default=False)
    except (OSError, ValueError, TypeError) as e:
        raise RunError(
            f"no Dask scheduler answers at {address} ({_first_line(e)}). `dask scheduler` starts "
            "one and prints its address; leave --scheduler out to use this machine."
        ) from e
    with client:
        if not client.nthreads():
            raise RunError(
                f"the scheduler at {address} has no workers; `dask worker {address} --nthreads 1` "
                "starts one, in an environment with lwlab."
            )
        yield client


def check(client: Any, folder: Path) -> None:
    """Make sure that every worker has this lwlab and shares the sweep's folder.

    Raises
    ------
    RunError
        Naming the workers that do not.
    """
    token = f".shared-{uuid.uuid4().hex[:8]}"
    (folder / token).touch()
    try:
        found = client.run(rows.probe, str(folder), token)
    except Exception as e:  # whatever the worker's environment makes of our function
        raise RunError(
            f"the workers cannot run lwlab ({_first_line(e)}); install lwlab {__version__} in "
            "their environment."
        ) from e
    finally:
        (folder / token).unlink(missing_ok=True)
    for address, about in found.items():
        if about["lwlab"] != __version__:
            raise RunError(
                f"worker {address} has lwlab {about['lwlab']}, this is {__version__}; rows of two "
                "versions would not compare."
            )
        if not about["sees"] or not about["writes"]:
            what = "cannot write into" if about["sees"] else "does not see"
            raise RunError(
                f"worker {address} {what} {folder}; choose a folder on a disk that all workers "
                "share (--out)."
            )


def memory_mb(text: str) -> float:
    """Read an amount of memory such as `2GB`, `1500 MiB`, `800MB`; megabytes of 2**20 bytes.

    Raises
    ------
    BadInput
        If it is not an amount, or under 100 MB, in which no kernel starts.
    """
    from dask.utils import parse_bytes

    try:
        amount = parse_bytes(text) / 2**20
    except ValueError:
        amount = -1.0
    if amount < 100:
        raise BadInput(f"memory {text!r} is not an amount of at least 100 MB, such as 2GB.")
    return float(amount)


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
