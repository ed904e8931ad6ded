"""lwlab beside httpx, anyio and FastAPI in one process, imported in any order.

nnsight mounts `.save` on every object, and anyio refuses to define its attribute classes after
that. Whether it shows depends on what came first, so every order runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

pytest.importorskip("fastapi")
pytestmark = pytest.mark.xdist_group("neighbours")  # one worker: they share what is slow to start

# Steps by name. `load` is the way of a user; `bare` is nnsight as anyone may import it.
STEPS = """
import asyncio, contextlib, json, os
# Both come in before nnsight in any case, and with them a part of httpx and anyio.
import torch, xarray
from transformers import GPT2LMHeadModel
torch.set_num_threads(1)
ANSWER = b"HTTP/1.1 204 No Content\\r\\nConnection: close\\r\\n\\r\\n"

def load():
    import lwlab as lw
    from lwlab.models import toys
    model = lw.wrap(toys.tiny("gpt2")[0], tokenizer=toys.tokenizer())
    assert lw.cache(model, "the dog saw", "resid_pre").resid_pre.shape == (1, 3, 3, 32)
    with model.nn.trace("the dog saw"):  # and users keep nnsight's own way to save
        logits = model.nn.output.logits.save()
    assert logits.shape == (1, 3, 100)

def bare():
    import nnsight

def imports():
    import anyio, fastapi, fastapi.testclient, httpx

def httpx_():
    import httpx

async def reach(serve):
    # A real server on the loopback interface, so that sockets are in use.
    import httpx
    async with serve() as port, httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/")).status_code

@contextlib.asynccontextmanager
async def asyncio_server():
    async def answer(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(ANSWER)
        await writer.drain()
        writer.close()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]

@contextlib.asynccontextmanager
async def anyio_server():
    import anyio
    async def answer(stream):
        async with stream:
            await stream.receive()
            await stream.send(ANSWER)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        group.cancel_scope.cancel()

def httpx_client():
    assert asyncio.run(reach(asyncio_server)) == 204

def anyio_run():
    import anyio
    assert anyio.run(reach, anyio_server) == 204

def test_client():
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    app = FastAPI()
    app.get("/")(lambda: {"lab": "open"})
    with TestClient(app) as client:
        assert client.get("/").json() == {"lab": "open"}

def every_anyio_class():
    import importlib, pkgutil, anyio
    for found in pkgutil.walk_packages(anyio.__path__, "anyio."):
        if "trio" in found.name or "pytest" in found.name:
            continue  # they need other packages
        module = importlib.import_module(found.name)
        for name in dir(module):
            getattr(module, name)

USE = [anyio_run, httpx_client, test_client, every_anyio_class]

def attempt(steps):
    for step in steps:
        try:
            step()
        except BaseException as error:
            return f"{step.__name__}: {type(error).__name__}: {error}"
    return "works"

def apart(steps):
    # A forked child has imported what this process has, and no more.
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, attempt(steps).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
"""
ORDERS = {
    "lwlab first": "[load, *USE]",
    "lwlab last": "[imports, load, *USE]",
    "lwlab between httpx and fastapi": "[httpx_, load, *USE]",
    "lwlab after they were used": "[*USE, load, *USE]",
    "nnsight first, then lwlab": "[bare, load, *USE]",
}
UNGUARDED = {
    "nnsight first": "[bare, *USE]",
    "nnsight last": "[imports, bare, *USE]",
    **{
        f"nnsight, then {use}": f"[bare, {use}]"
        for use in ("anyio_run", "httpx_client", "test_client")
    },
}


def outcomes(orders: Mapping[str, str]) -> dict[str, str]:
    """Run each order of steps in a process of its own; say how it went."""
    asked = "{" + ", ".join(f"{k!r}: apart({v})" for k, v in orders.items()) + "}"
    code = f"{STEPS}\nprint(json.dumps({asked}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    return outcomes({**ORDERS, **UNGUARDED})


@pytest.mark.parametrize("order", ORDERS)
def test_httpx_anyio_and_fastapi_work_beside_lwlab(order: str, said: dict[str, str]) -> None:
    assert said[order] == "works"


@pytest.mark.parametrize("order", UNGUARDED)
def test_without_the_guard_they_break(order: str, said: dict[str, str]) -> None:
    assert "TypeError: Attribute 'save' is missing its type annotation" in said[order]


def test_saving_a_result_works_after_nnsight_has_put_save_on_every_object() -> None:
    code = """
import tempfile, os
import lwlab as lw
from lwlab.tracing._nnsight import nnsight
nnsight()
import xarray as xr
path = os.path.join(tempfile.mkdtemp(), "a.nc")
lw.save(xr.DataArray([1.0, 2.0], dims="layer"), path)
print(lw.open(path).values.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "[1.0, 2.0]", done.stderr
