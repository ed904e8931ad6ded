"""Labelled sentences for probes: is it true, is it kind, does it follow? Made here, by seed.

They stand in for the nine data sets of "Exploring Concept Depth" (arXiv:2404.07066), which need a
download; `read` takes those, or your own, from a table. The sets here are built so that words alone
do not tell the class. Sentences come in groups that share their words: where a group is

    a1 b1: true    a1 b2: false    a2 b1: false    a2 b2: true

a classifier that adds up weights of words gives the two classes equal sums, and with whole groups
held out it has not seen the words at all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.tasks.facts import RELATIONS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Concept:
    """n texts with a class each; made by `lw.tasks.concept`, or of your own.

    labels: the class of each text, a number into `classes`. groups: texts with one number share
    words (a city, an adjective, a pattern) and must stay on one side of a split; without groups
    every text is its own. kind: "factual", "emotional", "inferential", or what you like.

    Raises BadInput for lists of unequal length, labels outside `classes`, a class without texts,
    fewer texts than classes, empty texts, or one text with two classes or in two groups (it would
    stand in the training half and in the test half).
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    groups: tuple[int, ...] = ()
    classes: tuple[str, ...] = ("no", "yes")
    kind: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        texts, labels = tuple(self.texts), tuple(int(i) for i in self.labels)
        groups = tuple(self.groups) or tuple(range(len(texts)))
        for field, value in (("texts", texts), ("labels", labels), ("groups", groups)):
            object.__setattr__(self, field, value)
        if len({len(texts), len(labels), len(groups)}) > 1:
            raise BadInput(
                f"{self.name}: {len(texts)} texts, {len(labels)} labels, {len(groups)} groups; "
                "give one of each for every text"
            )
        if len(set(self.classes)) < 2 or len(set(self.classes)) < len(self.classes):
            raise BadInput(f"{self.name}: classes={self.classes}; a concept needs two, all unlike")
        if len(texts) < len(self.classes):
            raise BadInput(f"{self.name}: {len(texts)} texts for {len(self.classes)} classes")
        strange = sorted(set(labels) - set(range(len(self.classes))))
        if strange:
            raise BadInput(f"{self.name}: labels {strange} number no class of {self.classes}")
        for i, word in enumerate(self.classes):
            if i not in labels:
                raise BadInput(
                    f"{self.name}: all {len(texts)} texts are of other classes than {word!r}; "
                    "there is nothing to tell apart"
                )
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            if not str(text).strip():
                raise BadInput(f"{self.name}: text {i} is empty")
            j = first.setdefault(text, i)
            if labels[j] != labels[i] or groups[j] != groups[i]:
                what = "two classes" if labels[j] != labels[i] else "two groups"
                raise BadInput(
                    f"{self.name}: {text!r:.80} comes twice (texts {j} and {i}), in {what}, and "
                    "could stand in training and test at once"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return (
            f"<Concept {self.name}: {len(self)} texts in {len(set(self.groups))} groups, "
            f"{self.texts[0]!r:.60} is {self.classes[self.labels[0]]}>"
        )

    @property
    def attrs(self) -> dict[str, Any]:
        """What a result says besides the name: kind, classes and groups."""
        return {
            "kind": self.kind, "classes": list(self.classes), "groups": len(set(self.groups)),
        }  # fmt: skip

    def framed(self, *templates: str, seed: int = 0) -> Concept:
        """Put every text into a template with {text}, drawn by `seed` where there are several.

        Raises BadInput for a template without {text}.
        """
        for template in templates or ("",):
            if "{text}" not in template:
                raise BadInput(f"template {template!r} has no place for the {{text}}")
        rng = random.Random(f"framed {self.name} {seed}")
        texts = tuple(rng.choice(templates).replace("{text}", t) for t in self.texts)
        return replace(self, texts=texts)

    def noisy(self, seed: int = 0, strings: Sequence[str] = ("aaa", "bbb")) -> Concept:
        """Put a meaningless string before every text, as the paper's code does."""
        made = self.framed(*(f"{s} {{text}}" for s in strings), seed=seed)
        return replace(made, name=f"{self.name}, noise")

    def against(self, word: str) -> Concept:
        """Return one class against all others: classes ("other", word)."""
        if word not in self.classes:
            raise UnknownName(f"{self.name} has no class {word!r}{suggest(word, self.classes)}")
        at = self.classes.index(word)
        labels = tuple(int(i == at) for i in self.labels)
        return replace(self, labels=labels, classes=("other", word))

    def to_frame(self) -> pd.DataFrame:
        """Return the texts as a table, one row a text."""
        import pandas as pd

        words = [self.classes[i] for i in self.labels]
        return pd.DataFrame({"text": self.texts, "class": words, "group": self.groups})


def _words(text: str) -> list[str]:
    return text.split()


_ADJECTIVES = [
    tuple(pair.split("/"))
    for pair in _words(
        """wonderful/awful lovely/ugly brilliant/stupid delightful/dreadful charming/annoying
        excellent/terrible superb/horrible pleasant/unpleasant beautiful/hideous amazing/appalling
        fantastic/pathetic enjoyable/boring impressive/disappointing graceful/clumsy perfect/ruined
        exciting/dull friendly/hostile generous/greedy clever/foolish fresh/rotten
        marvellous/miserable admirable/shameful splendid/disgusting adorable/repulsive
        great/bad good/poor inspiring/depressing kind/cruel magnificent/mediocre
        refreshing/tiresome elegant/vulgar outstanding/inferior"""
    )
]
_NOUNS = _words("film meal party book room trip song play match garden letter speech concert story")
_KINDS = _words(
    """cat dog horse cow sheep goat duck goose fox wolf bear lion tiger mouse rat rabbit frog snake
    bird fish whale shark bee ant spider doctor teacher farmer baker lawyer painter singer dancer
    writer driver sailor soldier pilot nurse judge priest clerk waiter tailor hunter miner
    plumber butcher barber actor banker chemist poet guard monk spy thief king queen prince"""
)
_TRAITS = _words(
    """red blue green yellow brown white black grey tall short fat thin fast slow loud quiet strong
    weak rich poor young old happy sad angry calm brave shy clean dirty warm cold wet dry hungry
    thirsty tired awake busy lazy honest proud polite rude clever silly lucky sick heavy light
    sharp blind deaf bald hairy smooth rough bright"""
)
_NAMES = _words("Anna Tom Mary Ben Lucy Sam Kate Jack Emma Paul Rose Mark Jane Carl Ruth Luke")

Row = tuple[str, int]
"""A text and its class."""


def _cities(rng: random.Random) -> list[list[Row]]:
    # "Tunis is in Tunisia" can be answered by spelling.
    pairs = [(a, b) for a, b in RELATIONS["capital"].pairs.items() if a[:3] != b[:3]]
    rng.shuffle(pairs)
    out = []
    for one, two in zip(pairs[::2], pairs[1::2]):
        out.append([
            (f"The city of {a[1]} is in {b[0]}.", int(a is b))
            for a, b in product((one, two), repeat=2)
        ])  # fmt: skip
    return out


def _sentiment(rng: random.Random) -> list[list[Row]]:
    return [
        [(f"The {noun} was really {a}.", int(a == good)) for noun in nouns for a in (good, bad)]
        for good, bad in rng.sample(_ADJECTIVES, len(_ADJECTIVES))
        for nouns in [rng.sample(_NOUNS, 2)]
    ]


def _negated(rng: random.Random) -> list[list[Row]]:
    frames = ("The {} was nothing but {}.", "The {} was anything but {}.")
    return [
        [
            (frame.format(noun, a), int((a == good) == (frame is frames[0])))
            for frame in frames
            for a in (good, bad)
        ]
        for good, bad in rng.sample(_ADJECTIVES, len(_ADJECTIVES))
        for noun in [rng.choice(_NOUNS)]
    ]


def _syllogism(rng: random.Random) -> list[list[Row]]:
    kinds, traits = rng.sample(_KINDS, len(_KINDS)), rng.sample(_TRAITS, len(_TRAITS))
    out = []
    for i in range(min(len(kinds), len(traits)) // 2):
        a, b = kinds[2 * i : 2 * i + 2]
        p, q = traits[2 * i : 2 * i + 2]
        who = rng.choice(_NAMES)
        rules = f"Every {a} is {p} and every {b} is {q}."
        out.append([
            (f"{rules} {who} is {_a(k)}, so {who} is {t}.", int((k == a) == (t == p)))
            for k in (a, b) for t in (p, q)
        ])  # fmt: skip
    return out


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _coins(rng: random.Random, flips: int = 4) -> list[list[Row]]:
    """Groups of two patterns that differ in the last flip, each told with two sets of names."""
    starts = list(product((0, 1), repeat=flips - 1))
    rng.shuffle(starts)
    out = []
    for start in starts:
        rows = []
        for last, _ in product((0, 1), repeat=2):
            names = rng.sample(_NAMES, flips)
            done = (*start, last)
            told = " ".join(
                f"{who} {'flips' if f else 'does not flip'} it." for who, f in zip(names, done)
            )
            rows.append((f"A coin is heads up. {told} Is it still heads up?", 1 - sum(done) % 2))
        out.append(rows)
    return out


_Maker = Callable[[random.Random], list[list[Row]]]
CONCEPTS: dict[str, tuple[_Maker, str, tuple[str, str]]] = {
    "cities": (_cities, "factual", ("false", "true")),
    "sentiment": (_sentiment, "emotional", ("negative", "positive")),
    "negated": (_negated, "emotional", ("negative", "positive")),
    "syllogism": (_syllogism, "inferential", ("false", "true")),
    "coins": (_coins, "inferential", ("tails", "heads")),
}
"""Name -> (what makes its groups of four texts, its kind, its classes)."""


def concept(name: str, n: int = 96, seed: int = 0) -> Concept:
    """Make about n labelled texts (whole groups of four) of a concept, balanced in its classes.

    cities (factual): "The city of Paris is in France." or "... in Poland."; two cities and their
    countries make a group, and no other group has them. sentiment (emotional): "The film was
    really awful."; a pair of adjectives makes a group, so that the class is in words a probe was
    not trained on. negated (emotional): "The film was nothing but awful." and "... anything but
    awful.". syllogism (inferential): "Every cat is red and every dog is blue. Tom is a cat, so Tom
    is red." or "... blue.". coins (inferential; the paper's coin flip with four people): at most 32
    texts, and the number of "not" gives a bag of words something to go by.

    In the first four a linear bag of words gets exactly one half of the texts of a group that it
    was not trained on. Raises UnknownName for another name and BadInput for an n that is out of
    range (4 to 32 coins, 96 syllogisms or so: the message says).
    """
    if name not in CONCEPTS:
        raise UnknownName(
            f"no concept {name!r}{suggest(name, CONCEPTS)} For your own: lw.tasks.Concept(...), or "
            "lw.tasks.read_concept('table.csv')."
        )
    make, kind, classes = CONCEPTS[name]
    groups = make(random.Random(f"concept {name} {seed}"))
    if not 4 <= n <= 4 * len(groups):
        raise BadInput(f"{name} was asked for n={n} texts; it makes 4 to {4 * len(groups)}")
    chosen = groups[: n // 4]
    rows = [(text, y, g) for g, group in enumerate(chosen) for text, y in group]
    texts, labels, of = zip(*rows)
    return Concept(name, texts, labels, of, classes, kind, seed)


def read_concept(
    path: str | Path, *, text: str = "text", label: str = "label", group: str = "group"
) -> Concept:
    """Read a concept from a table (.csv or .tsv): a column of texts, one of classes.

    Where there is a column `group`, it says which texts must stay together; without it every text
    is its own group. Classes are the different values, in sorted order.

    Raises BadInput for a file or column that is not there, and as `Concept` does.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no file {str(path)!r} to read.")
    table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str)
    for column in (text, label):
        if column not in table:
            raise BadInput(f"{path.name} has no column {column!r}; it has {', '.join(table)}.")
    table = table.dropna(subset=[text, label])
    classes = tuple(sorted(table[label].unique()))
    labels = tuple(classes.index(v) for v in table[label])
    groups = tuple(pd.factorize(table[group])[0].tolist()) if group in table else ()
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "concept"
    return Concept(name, tuple(table[text]), labels, groups, classes)
