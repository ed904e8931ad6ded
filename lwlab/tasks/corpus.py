"""Text to read: Python's own documentation (no download), files, or a Hugging Face dataset."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from lwlab.errors import BadInput, FetchError
from lwlab.tasks.fit import Fit

_TEXT_SUFFIXES = {".txt", ".md", ".rst"}


def corpus(
    source: str | Path = "pydoc",
    *,
    n: int | None = None,
    tokens: int | None = None,
    model: Any = None,
    seed: int = 0,
    split: str = "train",
    column: str = "text",
    config: str | None = None,
) -> list[str]:
    """Return texts in an order drawn by `seed`, at most `n` of them.

    source: "pydoc", the topics of the Python running this (`pydoc_data.topics`: about 80 English
    texts on the language, PSF licence; they differ a little from one Python version to the next,
    so numbers do too), lightly stripped of markup; the path of a text file (one text) or a folder
    (one text a .txt, .md or .rst file); or the name of a Hugging Face dataset, of which `split`,
    `column` and `config` choose the part (needs the package datasets).
    tokens: cut each text at white space into pieces of at most so many tokens of `model` (a Model
    or a tokenizer), and leave out remainders under half of that.

    Raises BadInput when there is no such file, column or text, FetchError when the dataset cannot
    be had.
    """
    if (n is not None and n < 1) or (tokens is not None and tokens < 2):
        raise BadInput(f"n={n}, tokens={tokens}: ask for at least one text, of two tokens or more.")
    if tokens is not None and model is None:
        raise BadInput("tokens needs model= (a Model or a tokenizer) to count with.")
    if source == "pydoc":
        texts = _pydoc()
    elif Path(source).exists():
        texts = _files(Path(source))
    elif isinstance(source, Path) or Path(source).suffix in _TEXT_SUFFIXES or source[:1] in "/.~":
        raise BadInput(f"there is no file or folder {str(source)!r} to read.")
    else:
        texts = _dataset(source, config, split, column)
    texts = [t for t in texts if t.strip()]
    if tokens is not None:
        fit = Fit(model)
        texts = [piece for text in texts for piece in _pieces(fit, text, tokens)]
    if not texts:
        raise BadInput(f"no text is left of {str(source)!r}.")
    random.Random(f"corpus {seed}").shuffle(texts)
    return texts[:n]


def _pydoc() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise BadInput("this Python was installed without pydoc_data; give a path.") from None
    return [_strip(topics[key]) for key in sorted(topics)]


def _strip(text: str) -> str:
    """Drop heading rules and inline marks and join the lines of paragraphs; code stays as it is."""
    text = re.sub(r"^[*=\-~^]{3,}\n", "", text.replace("\r\n", "\n"), flags=re.MULTILINE)
    text = re.sub(r"(?<![\w*])(\*\*?|``?)(\S(?:[^*`\n]*\S)?)\1(?![\w*])", r"\2", text)
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    joined = [b if re.match(r"\s", b) else re.sub(r"\s*\n\s*", " ", b) for b in blocks]
    return "\n\n".join(block.rstrip() for block in joined)


def _files(path: Path) -> list[str]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    kept = files if path.is_file() else [p for p in files if p.suffix in _TEXT_SUFFIXES]
    if not kept:
        raise BadInput(f"{str(path)!r} holds no {', '.join(sorted(_TEXT_SUFFIXES))} file.")
    try:
        return [p.read_text(encoding="utf-8") for p in kept]
    except UnicodeDecodeError as error:
        raise BadInput(f"a file under {str(path)!r} is not UTF-8 text: {error}") from None


def _dataset(name: str, config: str | None, split: str, column: str) -> list[str]:
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f"{name!r} is no file, so it is taken for a Hugging Face dataset, and the package "
            "datasets is not installed: `pip install datasets`, or use source='pydoc' or a path."
        ) from None
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise FetchError(
            f"{name!r} is no file, and as a Hugging Face dataset it cannot be loaded (config "
            f"{config!r}, split {split!r}): {error}"
        ) from error
    if column not in rows.column_names:
        raise BadInput(f"{name!r} has no column {column!r}; it has {', '.join(rows.column_names)}.")
    return [str(value) for value in rows[column]]


def _pieces(fit: Fit, text: str, tokens: int) -> list[str]:
    """Cut a text at white space into consecutive pieces of at most `tokens` tokens."""
    words = re.findall(r"\s*\S+", text)
    sizes = [len(ids) for ids in fit.tokenizer(words, add_special_tokens=False)["input_ids"]]
    room = tokens - len(fit.ids(""))  # a start token takes its place
    out, start = [], 0
    while start < len(words):
        stop, filled = start + 1, sizes[start]
        while stop < len(words) and filled + sizes[stop] <= room:
            filled += sizes[stop]
            stop += 1
        # Words apart may have fewer tokens than together, so count the piece itself.
        while len(fit.ids(piece := "".join(words[start:stop]).lstrip())) > tokens:
            stop -= 1
            if stop == start:
                break
        if stop > start and len(fit.ids(piece)) >= tokens / 2:
            out.append(piece)
        start = max(stop, start + 1)
    return out
