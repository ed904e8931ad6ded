"""Each task asks what it says it asks: the words at the named positions, checked one by one."""

from __future__ import annotations

import re

import pytest
import torch

from lwlab import tasks
from lwlab.errors import BadInput, UnknownName
from lwlab.tasks import words


def token_at(tokenizer, texts, where):
    return [tokenizer(t)["input_ids"][int(p)] for t, p in zip(texts, where)]


@pytest.mark.parametrize("order", ["mixed", "abba", "baba"])
@pytest.mark.parametrize("corruption", ["s2", "abc"])
def test_ioi_positions_hold_the_names_they_are_called_after(tokenizer, order, corruption):
    task = tasks.ioi(tokenizer, n=12, order=order, corruption=corruption, template="working")
    at = task.positions
    receiver, giver = task.answer_ids.tolist(), task.foil_ids.tolist()
    assert token_at(tokenizer, task.clean, at["IO"]) == receiver
    assert token_at(tokenizer, task.clean, at["S1"]) == giver
    assert token_at(tokenizer, task.clean, at["S2"]) == giver
    assert torch.equal(at["S1+1"], at["S1"] + 1)
    assert bool((at["S2"] > torch.maximum(at["S1"], at["IO"])).all())
    assert list(at) == ["IO", "S1", "S1+1", "S2", "END"]
    if corruption == "s2":
        assert token_at(tokenizer, task.corrupt, at["S2"]) == receiver
        assert task.changed == ("S2",)
    else:
        for i in range(12):
            fresh = {token_at(tokenizer, [task.corrupt[i]], [at[p][i]])[0] for p in task.changed}
            assert len(fresh) == 3
            assert not fresh & {receiver[i], giver[i]}
    first = (at["IO"] < at["S1"]).tolist()
    expected = {"abba": {True}, "baba": {False}, "mixed": {True, False}}[order]
    assert set(first) == expected


def test_ioi_takes_pairs_of_names_in_their_order(make):
    task = tasks.ioi(make(), n=8, names=tasks.IOI_RELP_PAIRS, order="abba")
    assert task.clean[:2] == (
        "When Mary and John went to the store, John gave a drink to",
        "When John and Mary went to the store, Mary gave a drink to",
    )
    assert "".join(task.answers) == " Mary John Tom James Dan Sarah Anna Paul"
    assert task.positions["IO"].tolist() == [1] * 8
    assert task.attrs["order"] == "abba"


def test_ioi_takes_a_template_of_ones_own_and_lists_of_them(make):
    own = "Yesterday {A} and {B} met at the {place} and {S} gave a {object} to"
    task = tasks.ioi(make(), n=4, template=own, places=["zoo"], objects=["ball"])
    assert all(re.fullmatch(r"Yest.*met at the zoo and \w+ gave a ball to", t) for t in task.clean)
    mixed = tasks.ioi(make(), n=8, template=["store-drink", "found"], ragged=True)
    assert mixed.attrs["template"] == sorted(
        tasks.IOI_TEMPLATES[t] for t in ("store-drink", "found")
    )
    assert not mixed.equal_length
    with pytest.raises(BadInput, match=r"differ in length.*14 tokens.*ragged=True"):
        tasks.ioi(make(), n=8, template=["store-drink", "found"])


def test_ioi_word_lists_are_long_and_without_repeats():
    assert len(words.NAMES) >= 60
    for listed in (words.NAMES, words.PLACES, words.OBJECTS, words.EVENTS, words.THINGS):
        assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("digits", ["one", "two"])
def test_greater_than_sets_are_the_later_and_the_other_years(make, digits):
    task = tasks.greater_than(make(digits=digits), n=20)
    width = {"one": 1, "two": 2}[digits]
    assert task.attrs["digits"] == width
    for i in range(20):
        start, stem = re.search(r"year (\d+) to the year (\d+)$", task.clean[i]).groups()
        assert len(start) == 4
        assert start[: 4 - width] == stem
        every = {f"{stem}{y:0{width}d}" for y in range(10**width)}
        later = {stem + y for y in task.answers[i].split("|")}
        assert later == {y for y in every if int(y) > int(start)}
        assert {stem + y for y in task.foils[i].split("|")} == every - later
        corrupt = re.search(r"year (\d+) to", task.corrupt[i])[1]
        assert corrupt == stem + ("01" if width == 2 else "0")


def test_greater_than_refuses_years_that_are_one_token(make):
    tokenizer = make(digits="year", drop=" ".join(str(y) for y in range(100)))
    with pytest.raises(BadInput, match="token of two digits or of one; ' 1132' splits into"):
        tasks.greater_than(tokenizer)


def test_greater_than_leaves_out_years_of_one_token(make):
    """As in GPT-2, where " 1800" is one token and " 1732" is two."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = make(digits="two")
    tokenizer.add_tokens(["1500"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(r"1500|\d{2}|[A-Za-z]+"), "isolated"),
        ]
    )
    task = tasks.greater_than(tokenizer, n=194, nouns=["war", "trial"], centuries=[15])
    assert len({re.search(r"year (\d+)", t)[1] for t in task.clean}) == 97  # 1502 to 1598
    assert "00" in task.foils[0].split("|")


@pytest.mark.parametrize("repeats", [1, 2])
def test_induction_repeats_the_list_and_the_twin_differs_in_the_answer(tokenizer, repeats):
    task = tasks.induction(tokenizer, n=6, length=8, repeats=repeats)
    at = task.positions
    assert token_at(tokenizer, task.clean, at["A1"]) == token_at(tokenizer, task.clean, at["END"])
    for r in range(repeats):
        there = at[f"B{r + 1}"]
        assert torch.equal(there, at["A1"] + 1 + 8 * r)
        assert token_at(tokenizer, task.clean, there) == task.answer_ids.tolist()
        assert token_at(tokenizer, task.corrupt, there) == task.foil_ids.tolist()
    for text, answer in zip(task.clean, task.answers):
        items = text.split()[1:]
        assert items == (items[:8] * repeats) + items[:4]
        assert f" {items[4]}" == answer


@pytest.mark.parametrize(("op", "compute"), [("+", int.__add__), ("-", int.__sub__)])
def test_arithmetic_is_right(tokenizer, op, compute):
    task = tasks.arithmetic(tokenizer, n=12, op=op, shots=3)
    for text, answer, foil, twin in zip(task.clean, task.answers, task.foils, task.corrupt):
        lines = text.split("\n")
        assert len(lines) == 4
        for line, result in zip(lines, [None, None, None, answer]):
            a, b, c = re.fullmatch(rf"(\d)\{op}(\d)=(\d*)", line).groups()
            assert compute(int(a), int(b)) == int(result or c)
        a, b = re.fullmatch(rf"(\d)\{op}(\d)=", twin.split("\n")[-1]).groups()
        assert compute(int(a), int(b)) == int(foil)


def test_arithmetic_uses_two_digit_results_where_they_are_one_token(make):
    tokenizer = make(digits="two")
    task = tasks.arithmetic(tokenizer, n=200, low=5, high=20, shots=0)
    assert {len(a) for a in task.answers} == {2}  # 5 and 10 are as many tokens; 5+5 is 10
    with pytest.raises(BadInput, match=r"make 0 distinct.*'10' = \['1', '0'\]"):
        tasks.arithmetic(make(), n=16, low=5, high=9)


def test_arithmetic_takes_a_form_of_ones_own(make):
    task = tasks.arithmetic(make(), n=4, shots=1, template="{a} {op} {b} is ")
    assert re.fullmatch(r"\d \+ \d is \d\n\d \+ \d is ", task.clean[0])


@pytest.mark.parametrize("relation", list(tasks.RELATIONS))
def test_facts_are_those_of_the_table(tokenizer, relation):
    table = tasks.RELATIONS[relation].pairs
    task = tasks.facts(tokenizer, relation, n=10)
    ids = {tokenizer("a " + s)["input_ids"][-1]: s for s in table}
    for texts, replies in ((task.clean, task.answers), (task.corrupt, task.foils)):
        for token, reply in zip(token_at(tokenizer, texts, task.positions["SUBJECT"]), replies):
            assert f" {table[ids[token]]}" == reply


def test_there_are_forty_countries_and_your_own_facts_work(make):
    assert len(tasks.RELATIONS["capital"].pairs) >= 40
    own = {"Mary": "store", "John": "park", "Tom": "school"}
    task = tasks.facts(make(), n=2, pairs=own, template="The place of {subject} is")
    assert set(task.answers) < {" store", " park", " school"}
    with pytest.raises(BadInput, match="8 prompts and these words and templates make 6"):
        tasks.facts(make(), n=8, pairs=own, template="The place of {subject} is")


@pytest.mark.parametrize("template", list(tasks.PRONOUN_TEMPLATES))
def test_pronouns_fit_the_name(tokenizer, template):
    task = tasks.pronouns(tokenizer, n=8, template=template)
    he = {" he", " him", " his", " himself"}
    for text, answer, foil in zip(task.clean, task.answers, task.foils):
        male = bool(set(re.findall(r"\w+", text)) & set(words.MALE))
        assert male == (answer in he)
        assert male != (foil in he)
    assert not set(words.MALE) & set(words.FEMALE)


@pytest.mark.parametrize("attractor", ["opposite", "same"])
def test_agreement_follows_the_subject_not_the_attractor(make, attractor):
    task = tasks.agreement(make(), n=8, attractor=attractor, verbs=("was", "were"))
    singular = {one for one, _ in words.NOUNS}
    for i in range(8):
        subject, between = re.fullmatch(r"The (\w+) near the (\w+)", task.clean[i]).groups()
        assert (subject in singular) == (i % 2 == 0)
        assert task.answers[i] == (" was" if subject in singular else " were")
        assert ((between in singular) == (subject in singular)) == (attractor == "same")
        twin, same = re.fullmatch(r"The (\w+) near the (\w+)", task.corrupt[i]).groups()
        assert same == between
        assert (subject, twin) in words.NOUNS or (twin, subject) in words.NOUNS
    assert "ATTRACTOR" not in tasks.agreement(make(), template="simple").positions


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: tasks.ioi(t, n=0), "n=0 prompts; n must be at least 1"),
        (lambda t: tasks.ioi(t, n=10**7), r"n=10000000 prompts .* make \d+ distinct"),
        (lambda t: tasks.ioi(t, names=["Mary", "Zbigniew"]), "'Zbigniew' = "),
        (lambda t: tasks.ioi(t, names=[("Mary", "Zbigniew")], n=2), "'Zbigniew' = "),
        (lambda t: tasks.ioi(t, n=4, names=[("Mary", "John")]), "make 2 distinct"),
        (lambda t: tasks.ioi(t, template="stor-drink"), "did you mean 'store-drink'"),
        (lambda t: tasks.ioi(t, template="When {A} met {B}"), r"lacks \{S\}"),
        (lambda t: tasks.ioi(t, template="{A} {B} {S} {thing} to"), r"has a slot \{thing\}"),
        (lambda t: tasks.ioi(t, corruption="s3"), "IOI knows no 's3'.*abc, s2"),
        (lambda t: tasks.ioi(t, order="abab"), "IOI knows no 'abab'"),
        (lambda t: tasks.ioi(None), "needs a model with a tokenizer"),
        (lambda t: tasks.greater_than(t, nouns=["Zwinger"]), "'Zwinger' = "),
        (lambda t: tasks.greater_than(t, centuries=[]), "centuries are numbers of two digits"),
        (lambda t: tasks.induction(t, length=80), "66 words can be used and 81|and 81 are needed"),
        (lambda t: tasks.induction(t, length=2), "at least 3 words"),
        (lambda t: tasks.induction(t, kind="letters"), "no kind 'letters'"),
        (lambda t: tasks.arithmetic(t, op="/"), "no operator '/'"),
        (lambda t: tasks.facts(t, "capitol"), "did you mean 'capital'"),
        (lambda t: tasks.facts(t, template="wrong"), "no template 'wrong' of capital"),
        (lambda t: tasks.facts(t, pairs={"a": "Qux", "b": "Quux"}), "'Quux' = "),
        (lambda t: tasks.pronouns(t, template="is"), "did you mean 'isnt'"),
        (lambda t: tasks.pronouns(t, male=["Zbigniew"]), "'Zbigniew' = "),
        (lambda t: tasks.agreement(t, template="nea"), "did you mean 'near'"),
        (lambda t: tasks.agreement(t, nouns=[("gnu", "gnus"), ("boy", "boys")]), "'gnu' = "),
        (lambda t: tasks.agreement(t, verbs=("quacks", "quack")), "' quacks' is not one token"),
        (lambda t: tasks.agreement(t, attractor="none"), "no attractor 'none'"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(make, call, message):
    with pytest.raises(BadInput, match=message):
        call(make())


def test_real_words_of_several_tokens_are_shown_split(smollm2):
    with pytest.raises(BadInput, match=r"'Zachary' = \[' Zach', 'ary'\]"):
        tasks.ioi(smollm2, names=["Zachary", "Mary"])
    with pytest.raises(BadInput, match=r"'10' = \['1', '0'\]"):
        tasks.arithmetic(smollm2, low=5, high=9)


def test_words_that_do_not_fit_are_dropped_while_enough_remain(make):
    tokenizer = make(drop="Mary John")
    task = tasks.ioi(tokenizer, n=200)
    assert not {"Mary", "John"} & set(re.findall(r"\w+", " ".join(task.clean)))


def test_glued_slots_and_shifting_twins_are_refused(make):
    from lwlab.tasks.fit import Example, Fit, build, fill

    frame = "And{A} and {B} sat, {S} gave to"
    with pytest.raises(BadInput, match="'Tom' is not one token of its own in 'AndTom"):
        tasks.ioi(make(), n=2, template=frame, names=[("Tom", "Anna")])
    fit = Fit(make())
    one, two = fill("The {subject} is", subject="cat"), fill("The {subject} are", subject="cats")
    with pytest.raises(BadInput, match="should differ at SUBJECT only, and do at positions"):
        build(
            fit,
            "t",
            [Example(one, two, (" is",), (" are",), {"SUBJECT": "subject"}, ("SUBJECT",))],
            seed=0,
            groups=[0],
        )
    longer = fill("The {subject} is is", subject="cats")
    with pytest.raises(BadInput, match="have 3 and 4 tokens; twins need equal"):
        build(
            fit,
            "t",
            [Example(one, longer, (" is",), (" are",), {"SUBJECT": "subject"}, ("SUBJECT",))],
            seed=0,
            groups=[0],
        )


def test_a_tokenizer_that_ends_prompts_with_a_token_is_refused(make):
    with pytest.raises(BadInput, match="ends every prompt with '<eos>'"):
        tasks.ioi(make(end=True))
    with pytest.raises(UnknownName):
        tasks.facts(make(), "nothing")
