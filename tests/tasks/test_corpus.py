"""Text: what is read is what was written, in an order the seed decides."""

from __future__ import annotations

import builtins
import re
import sys
import types

import pytest

from lwlab.errors import BadInput, FetchError
from lwlab.tasks import corpus
from lwlab.tasks.corpus import _strip


def test_pydoc_needs_no_download_and_reads_as_prose():
    texts = corpus()
    assert len(texts) > 70
    assert sum(map(len, texts)) > 300_000
    assert not any(re.search(r"^[*=\-~]{3,}$", t, re.MULTILINE) for t in texts)
    assert not any(re.search(r"(?<!\*)\*\*\w+\*\*(?!\*)", t) for t in texts)
    prose = next(t for t in texts if t.startswith('The "assert" statement'))
    assert "a convenient way to insert debugging assertions into a program:" in prose
    assert "\n   if __debug__:\n" in prose  # code keeps its lines


def test_stripping_joins_paragraphs_and_keeps_code_and_products():
    text = "Title\n=====\n\nA *word* and **two\nmore**, 2*3*4, x**2.\n\n   a = 1\n   b = ``c``\n"
    assert _strip(text) == "Title\n\nA word and **two more**, 2*3*4, x**2.\n\n   a = 1\n   b = c"


def test_the_seed_decides_order_and_n_the_number():
    assert corpus(n=5, seed=1) == corpus(n=9, seed=1)[:5]
    assert corpus(n=5, seed=1) != corpus(n=5, seed=2)
    assert sorted(corpus(seed=1)) == sorted(corpus(seed=2))


def test_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("Å one")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("two")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    assert corpus(tmp_path / "a.txt") == ["Å one"]
    assert sorted(corpus(str(tmp_path))) == ["two", "Å one"]
    with pytest.raises(BadInput, match="not UTF-8"):
        corpus(tmp_path / "c.bin")
    with pytest.raises(BadInput, match=r"no file or folder .*none\.txt"):
        corpus(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"holds no \.md, \.rst, \.txt file"):
        corpus(tmp_path / "empty")


def test_pieces_are_consecutive_and_no_longer_than_asked(make, tmp_path):
    text = " ".join(f"Mary gave John a drink {i}\n" for i in range(50))
    (tmp_path / "a.txt").write_text(text)
    tokenizer = make()
    pieces = corpus(tmp_path, tokens=16, model=tokenizer)
    assert all(8 <= len(tokenizer(p)["input_ids"]) <= 16 for p in pieces)
    assert all(re.sub(r"\s+", " ", p) in re.sub(r"\s+", " ", text) for p in pieces)
    assert sum(len(p.split()) for p in pieces) > 0.9 * len(text.split())
    assert len(set(pieces)) == len(pieces)


def test_pieces_of_pydoc_for_the_real_tokenizer(smollm2):
    pieces = corpus(n=20, tokens=64, model=smollm2)
    counts = [len(smollm2.tokenizer(p)["input_ids"]) for p in pieces]
    assert max(counts) <= 64
    assert min(counts) >= 32


def test_a_dataset_is_loaded_by_name(monkeypatch):
    class Rows(dict):
        column_names = ("text", "label")

    seen = []
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *a, **k: seen.append((a, k)) or Rows(text=["one", " ", "two"])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    got = corpus("some/set", config="small", split="test")
    assert sorted(got) == ["one", "two"]
    assert seen == [(("some/set", "small"), {"split": "test"})]
    with pytest.raises(BadInput, match="no column 'body'; it has text, label"):
        corpus("some/set", column="body")

    def offline(*_, **__):
        raise ConnectionError("no network")

    fake.load_dataset = offline
    with pytest.raises(FetchError, match=r"'some/set' is no file, .* no network"):
        corpus("some/set")


def test_a_dataset_without_the_package_names_the_way_out(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadInput, match=r"pip install datasets"):
        corpus("wikitext")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "at least one text"),
        ({"tokens": 1}, "two tokens or more"),
        ({"tokens": 8}, "tokens needs model="),
    ],
)
def test_numbers_that_make_no_text_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        corpus(**options)
