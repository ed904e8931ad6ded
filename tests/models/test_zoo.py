"""Names: the zoo's own, Hugging Face ids, folders, and every way of getting one wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lwlab.errors import BadInput, FetchError, UnknownName
from lwlab.models import hub, stored, toys, zoo

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save(folder: Path, arch: str = "llama", *, words: bool = True) -> Path:
    model, _ = toys.tiny(arch)
    model.save_pretrained(folder)
    if words:
        toys.tokenizer().save_pretrained(folder)
    return folder


def test_the_table_names_a_wheel_a_hash_and_a_licence_for_each_model():
    assert set(zoo.ENTRIES) == {"smollm2-135m", "all-minilm-l6", "efficientnet-lite0"}
    for name, entry in zoo.ENTRIES.items():
        assert entry.name == name
        assert re.fullmatch(r"[\w.-]+==[\d.]+", entry.wheel)
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.licence == "Apache-2.0"
        assert entry.download > 10**7
        assert entry.kind in {"decoder", "encoder", "vision"}


def test_status_lists_every_model_and_whether_it_is_here(cache):
    rows = zoo.status()
    assert [row["name"] for row in rows] == list(zoo.ENTRIES)
    assert not any(row["cached"] for row in rows)
    assert {"kind", "download_mb", "disk_mb", "licence", "source"} <= rows[0].keys()


def test_remove_deletes_what_lwlab_stored_and_nothing_else(index, cache, monkeypatch, tmp_path):
    entry = index.entry()
    monkeypatch.setitem(zoo.ENTRIES, entry.name, entry)
    zoo.fetch("made-up")
    assert zoo.remove("made-up")
    assert not zoo.remove("made-up")
    assert not list((cache / "models").iterdir())
    for name in ("gpt2", "EleutherAI/pythia-70m", str(save(tmp_path / "mine")), "../..", "nothing"):
        with pytest.raises(BadInput, match="not stored by lwlab"):
            zoo.remove(name)
    assert (tmp_path / "mine" / "config.json").exists()


def test_fetching_again_downloads_again(index, cache, monkeypatch):
    entry = index.entry()
    monkeypatch.setitem(zoo.ENTRIES, entry.name, entry)
    zoo.fetch("made-up")
    before = len(index.requests)
    zoo.fetch("made-up", again=True)
    assert len(index.requests) > before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolm2-135m", "did you mean 'smollm2-135m'"),
        ("all-MiniLM-L6", "did you mean 'all-minilm-l6'"),
        ("gpt-2", "did you mean 'gpt2'"),
        ("nonsense", "organisation/model"),
        ("", "organisation/model"),
        ("a b/c", "organisation/model"),
        ("a/b/c", "organisation/model"),
    ],
)
def test_an_unknown_name_is_an_error_that_says_what_would_work(name, said):
    with pytest.raises(UnknownName, match=re.escape(said)):
        zoo.resolve(name)


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        *(("llama", "decoder"), ("gpt2", "decoder"), ("mamba", "decoder"), ("opt", "decoder")),
        *(("bert", "encoder"), ("bert_mlm", "encoder"), ("t5", "encoder-decoder")),
        ("vit", "vision"),
    ],
)
def test_a_local_folder_resolves_to_its_kind(tmp_path, arch, kind):
    local = zoo.resolve(save(tmp_path / "m", arch, words=arch != "vit"))
    assert local.kind == kind
    assert local.loader == "transformers"
    assert local.path == tmp_path / "m"
    assert local.tokenizer_path == (None if arch == "vit" else tmp_path / "m")


def test_a_bare_folder_name_is_a_folder_only_if_a_model_is_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "mine")
    (tmp_path / "nonsense").mkdir()
    assert zoo.resolve("mine").path == tmp_path / "mine"
    with pytest.raises(UnknownName):
        zoo.resolve("nonsense")


def test_folders_that_cannot_be_loaded_say_what_is_missing(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        zoo.resolve(tmp_path / "none")
    with pytest.raises(BadInput, match=r"no config\.json"):
        zoo.resolve(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="is a file; give its folder"):
        zoo.resolve(tmp_path / "config.json")
    with pytest.raises(BadInput, match="no safetensors"):
        zoo.resolve(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"1")
    with pytest.raises(BadInput, match=r"no safetensors.*save_pretrained"):
        zoo.resolve(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        zoo.resolve(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    folder = save(tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FetchError, match="model-00002-of-00002"):
        zoo.resolve(folder)


def test_a_checksum_follows_the_weights_and_is_remembered(tmp_path, cache, monkeypatch):
    folder = save(tmp_path / "m")
    first = zoo.resolve(folder).checksum
    with monkeypatch.context() as patch:
        patch.setattr(stored, "sha256_file", lambda path: pytest.fail("read again"))
        assert zoo.resolve(folder).checksum == first
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(weights, ns=(1, 1))
    assert zoo.resolve(folder).checksum != first
    weights.write_bytes(raw)
    os.utime(weights, ns=(2, 2))
    assert zoo.resolve(folder).checksum == first


# Hugging Face, from a hub on this machine.

FILES = {
    "config.json": b'{"model_type": "bert", "architectures": ["BertModel"]}',
    "model.safetensors": bytes(100),
    "model.fp16.safetensors": bytes(50),
    "pytorch_model.bin": bytes(100),
    "onnx/model.onnx": bytes(10),
    "tokenizer.json": b"{}",
    "modules.json": b'[{"type": "sentence_transformers.models.Normalize"}]',
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}',
    "README.md": b"a model",
}
REPOS = {
    "org/whole": FILES,
    "org/pickles": {k: v for k, v in FILES.items() if not k.endswith(".safetensors")},
    "gpt2": FILES,
}


@dataclass
class Hub:
    cache: Path
    server: ThreadingHTTPServer
    requests: list[str] = field(default_factory=list)

    def ask(self, *names: str, **env: str) -> list[list[object]]:
        """Resolve names in a new process (the hub's address is read once, at import)."""
        script = (
            "import json, sys\nfrom lwlab.models import zoo\nfor name in sys.argv[1:]:\n"
            "  try:\n    x = zoo.resolve(name)\n"
            "    files = sorted(p.relative_to(x.path).as_posix() for p in x.path.rglob('*.*'))\n"
            "    print(json.dumps(['ok', files, x.kind, x.checksum, dict(x.info)]))\n"
            "  except Exception as e: print(json.dumps([type(e).__name__, str(e)]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *names],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
                **{"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}"},
                **{"HF_HUB_CACHE": str(self.cache), "NO_PROXY": "127.0.0.1", **env},
            },
        )
        assert "Fetching" not in done.stderr, "a progress bar in a log"
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def fake_hub(tmp_path) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, *, send: bool) -> None:
            path = self.path.partition("?")[0]
            served.requests.append(path)
            for repo, files in REPOS.items():
                if path == f"/api/models/{repo}/revision/main":
                    about = {"id": repo, "sha": COMMIT, "siblings": []}
                    about["siblings"] = [{"rfilename": name} for name in files]
                    return self.send(json.dumps(about).encode(), send)
                if path.startswith(f"/api/models/{repo}/tree/"):
                    rows = [
                        {"type": "file", "path": k, "size": len(v), "oid": "0" * 40}
                        for k, v in files.items()
                    ]
                    return self.send(json.dumps(rows).encode(), send)
                if path.startswith(f"/{repo}/resolve/{COMMIT}/"):
                    return self.send(files[path.partition(f"{COMMIT}/")[2]], send)
            known = any(path.startswith(f"/api/models/{repo}/") for repo in REPOS)
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, data: bytes, send: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.end_headers()
            if send:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Hub(tmp_path / "hub", server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


def test_hub_models_come_as_safetensors_only_and_then_from_the_cache(fake_hub):
    whole, old, pickles, none, revision = fake_hub.ask(
        "org/whole", "gpt2", "org/pickles", "org/none", "org/whole@never"
    )
    wanted = ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json"]
    assert whole[:3] == ["ok", [*wanted, "tokenizer.json"], "encoder"]
    assert whole[3:] == [COMMIT, {"pooling": "cls", "normalize": True}]
    assert old == whole
    assert pickles[0] == "BadInput"
    assert "has no safetensors" in str(pickles[1])
    assert none[0] == "UnknownName"
    assert "'org/none'" in str(none[1])
    assert revision[0] == "UnknownName"
    assert "no revision 'never'" in str(revision[1])

    asked = len(fake_hub.requests)
    again, unknown = fake_hub.ask("org/whole", "org/other", HF_HUB_OFFLINE="1")
    assert again == whole
    assert unknown[0] == "FetchError"
    assert "HF_HUB_OFFLINE is set" in str(unknown[1])
    assert len(fake_hub.requests) == asked

    fake_hub.server.shutdown()
    fake_hub.server.server_close()
    again, unknown = fake_hub.ask("org/whole", "org/other")
    assert again == whole
    assert unknown[0] == "FetchError"
    assert "lwlab fetch org/other" in str(unknown[1])


def test_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "org/model", "org/model@step3000", "org-1/m.o_d@refs/pr/1", "gpt2@main"):
        assert hub.is_id(name), name
    for name in ("", "a", "a/b/c", "/a/b", "./a", "~/a", "org/", "a b/c", "a/b@"):
        assert not hub.is_id(name), name
    assert not hub.looks_like_path("org/model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert hub.looks_like_path("org/model")


# The real ones (fetched once, then from the cache).


def test_all_minilm_embeds_sentences_with_alike_meanings_close_together():
    import torch
    from transformers import AutoModel, AutoTokenizer

    local = zoo.resolve("all-minilm-l6")
    assert local.kind == "encoder"
    assert local.info == {"pooling": "mean", "normalize": True, "max_tokens": 256}
    assert hub.info_of(local.path) == {"pooling": "mean", "normalize": True}
    model = AutoModel.from_pretrained(local.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(local.tokenizer_path)
    texts = ["A man is eating food.", "A man eats something.", "The girl carries a baby."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    alike, other = (pooled[0] @ pooled[1]).item(), (pooled[0] @ pooled[2]).item()
    assert alike > 0.7
    assert other < 0.2


def test_what_is_stored_takes_the_room_that_the_table_says():
    for name in ("smollm2-135m", "all-minilm-l6", "efficientnet-lite0"):
        entry, path = zoo.ENTRIES[name], zoo.resolve(name).path
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert size == pytest.approx(entry.disk, rel=0.01)
        assert zoo.resolve(name).checksum == (stored.read_manifest(path) or {})["checksum"]
