"""Concepts: sets in which words alone do not give the class away, and what is refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.tasks import CONCEPTS, Concept, concept

CROSSED = ["cities", "negated", "syllogism"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("name", CONCEPTS)
def test_sets_are_balanced_whole_groups_drawn_by_seed(name: str) -> None:
    n = 32 if name == "coins" else 96
    one = concept(name, n)
    assert len(one) == n
    assert concept(name, n) == one
    assert concept(name, n, seed=1).texts != one.texts
    assert Counter(Counter(one.groups).values()) == {4: n // 4}
    for g in set(one.groups):
        assert sum(y for y, h in zip(one.labels, one.groups) if h == g) == 2
    assert len(set(one.texts)) == n
    assert len({t[-1] for t in one.texts}) == 1  # the last token says nothing


@pytest.mark.parametrize("name", CROSSED)
@pytest.mark.parametrize("seed", [0, 7])
def test_in_every_group_both_classes_hold_the_same_words(name: str, seed: int) -> None:
    one = concept(name, 96, seed)
    for g in set(one.groups):
        held: list[Counter[str]] = [Counter(), Counter()]
        for text, y, h in zip(one.texts, one.labels, one.groups):
            if h == g:
                held[y].update(words(text))
        assert held[0] == held[1]


@pytest.mark.parametrize("name", ["cities", "sentiment", "negated"])
def test_the_words_that_matter_are_in_one_group_only(name: str) -> None:
    one = concept(name, 96)
    homes: dict[str, set[int]] = {}
    for text, g in zip(one.texts, one.groups):
        for w in words(text):
            homes.setdefault(w, set()).add(g)
    shared = {w for w, g in homes.items() if len(g) > 1}
    known = {
        "cities": "the city of is in",
        "sentiment": "the was really",
        "negated": "the was nothing anything but",
    }[name]
    nouns = {n for n in shared if name != "cities" and n not in known.split()}
    assert shared - nouns == set(known.split())
    for noun in nouns:  # they stand with both classes equally often
        ys = [y for t, y in zip(one.texts, one.labels) if noun in words(t)]
        assert 2 * sum(ys) == len(ys)


def test_classes_are_what_the_sentences_say() -> None:
    capitals = lw.tasks.RELATIONS["capital"].pairs
    cities = concept("cities", 96)
    for text, y in zip(cities.texts, cities.labels):
        city, country = re.fullmatch(r"The city of (.+) is in (.+)\.", text).groups()  # type: ignore[union-attr]
        assert (capitals[country] == city) == bool(y)
    for text, y in zip(*(lambda k: (k.texts, k.labels))(concept("coins", 32))):
        flips = text.count(" flips it")
        assert (flips % 2 == 0) == bool(y)
    for text, y in zip(*(lambda k: (k.texts, k.labels))(concept("syllogism", 96))):
        found = re.fullmatch(
            r"Every (\w+) is (\w+) and every (\w+) is (\w+)\. \w+ is an? (\w+), so \w+ is (\w+)\.",
            text,
        )
        assert found is not None
        a, p, b, q, kind, trait = found.groups()
        assert ({a: p, b: q}[kind] == trait) == bool(y)
    plain = {
        t.split()[-1]: y for t, y in zip(*(lambda k: (k.texts, k.labels))(concept("sentiment")))
    }
    for text, y in zip(*(lambda k: (k.texts, k.labels))(concept("negated", 96))):
        word = text.split()[-1]
        if word in plain:
            assert y == (plain[word] if "nothing but" in text else 1 - plain[word])


def test_noise_and_frames_change_texts_and_nothing_else() -> None:
    one = concept("cities", 16)
    noisy = one.noisy(seed=3)
    assert {t[:4] for t in noisy.texts} == {"aaa ", "bbb "}
    assert tuple(t[4:] for t in noisy.texts) == one.texts
    assert (noisy.labels, noisy.groups) == (one.labels, one.groups)
    assert noisy == one.noisy(seed=3)
    assert one.framed("{text}") == one
    with pytest.raises(BadInput, match="no place for the"):
        one.framed("True or false?")


def test_what_cannot_be_probed_is_refused() -> None:
    texts = ("a cat", "a dog", "a cow")
    with pytest.raises(BadInput, match="3 texts, 2 labels"):
        Concept("x", texts, (0, 1))
    with pytest.raises(BadInput, match="other classes than 'yes'"):
        Concept("x", texts, (0, 0, 0))
    with pytest.raises(BadInput, match="3 texts for 4 classes"):
        Concept("x", texts, (0, 1, 2), classes=("a", "b", "c", "d"))
    with pytest.raises(BadInput, match=r"labels \[5\] number no class"):
        Concept("x", texts, (0, 1, 5))
    with pytest.raises(BadInput, match=r"comes twice.*two classes"):
        Concept("x", ("a cat", "a cat", "a dog"), (0, 1, 1))
    with pytest.raises(BadInput, match=r"comes twice.*training and test"):
        Concept("x", ("a cat", "a cat", "a dog"), (0, 0, 1))
    with pytest.raises(BadInput, match="text 1 is empty"):
        Concept("x", ("a cat", " "), (0, 1))
    with pytest.raises(BadInput, match="needs two"):
        Concept("x", texts, (0, 0, 0), classes=("a",))
    assert len(Concept("x", ("a cat", "a cat", "a dog"), (0, 0, 1), (0, 0, 1))) == 3
    with pytest.raises(UnknownName, match="did you mean 'cities'"):
        concept("citys")
    for n in (3, 100000):
        with pytest.raises(BadInput, match=f"n={n}"):
            concept("cities", n)


def test_three_classes_become_two_by_taking_one_against_the_rest() -> None:
    three = Concept("x", ("a", "b", "c", "d"), (0, 1, 2, 1), classes=("p", "q", "r"))
    assert three.against("q").labels == (0, 1, 0, 1)
    assert three.against("q").classes == ("other", "q")
    with pytest.raises(UnknownName, match="no class 's'"):
        three.against("s")


def test_a_table_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "My Concept.csv"
    path.write_text("text,label,group\nred sky,warm,a\nblue sky,cold,a\nred sea,warm,b\n")
    mine = lw.tasks.read_concept(path)
    assert mine.name == "my-concept"
    assert mine.classes == ("cold", "warm")
    assert mine.labels == (1, 0, 1)
    assert mine.groups == (0, 0, 1)
    with pytest.raises(BadInput, match="no column 'says'; it has text, label, group"):
        lw.tasks.read_concept(path, text="says")
    with pytest.raises(BadInput, match="no file"):
        lw.tasks.read_concept(tmp_path / "none.csv")
