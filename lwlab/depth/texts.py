"""Questions of known difficulty, made here by seed: sums, word problems, chains of facts.

They stand in for GSM8K, MATH and MQuAKE, which need a download; `from_hub` takes those by name.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lwlab.errors import BadInput, LwlabError, UnknownName, suggest


@dataclass(frozen=True)
class Question:
    """A prompt, the answer that follows it, and how hard it is (operations, hops or a grade)."""

    prompt: str
    answer: str
    level: int
    kind: str

    @property
    def text(self) -> str:
        """Prompt and answer together."""
        return self.prompt + self.answer


Style = Literal["short", "plain", "paper"]
_NAMES = ("Anna", "Tom", "Mary", "Ben", "Lucy", "Sam", "Kate", "Jack", "Emma", "Paul")
_THINGS = ("apples", "books", "coins", "pens", "cards", "shells", "stamps", "marbles")
_GAIN = ("{who} buys {k} more.", "{who} finds {k} more.", "A friend gives {who} {k} more.")
_LOSS = ("{who} gives {k} away.", "{who} loses {k}.", "{who} sells {k}.")
_TEMPLATE = (  # the paper's instruction around GSM8K's questions and solutions
    "Given the following problem, reason and give a final answer to the problem.\n"
    'Problem: {question}\nYour response should end with "The final answer is [answer]" where '
    "[answer] is the response to the problem.\n\n{solution} The final answer is {answer}"
)


def sums(terms: int, n: int = 8, seed: int = 0) -> list[Question]:
    """Make n additions of `terms` digits, "5 + 7 + 5 = " -> "17"; level = terms - 1 operations.

    Raises BadInput for fewer than two terms.
    """
    if terms < 2 or n < 1:
        raise BadInput(f"terms={terms}, n={n}: a sum needs two terms, and n is 1 or more")
    rng = random.Random(f"sums {terms} {seed}")
    digits = [[rng.randint(1, 9) for _ in range(terms)] for _ in range(n)]
    return [
        Question(" + ".join(map(str, d)) + " = ", str(sum(d)), terms - 1, "sum") for d in digits
    ]


def word_problems(
    steps: int, n: int = 8, seed: int = 0, *, style: Style = "plain"
) -> list[Question]:
    """Make n grade-school problems of `steps` additions or subtractions, each with its solution.

    The answer is the worked solution, "5 + 3 = 8. 8 - 2 = 6. The final answer is 6". `style`
    "short" leaves out question and final sentence (20 tokens for one step, where "plain" has 40);
    "paper" puts the paper's instruction around both (100). Raises BadInput for steps outside 1..6.
    """
    if not 1 <= steps <= 6 or n < 1:
        raise BadInput(f"steps={steps}, n={n}: give 1 to 6 steps and at least one problem")
    if style not in get_args(Style):
        raise UnknownName(f"style={style!r} is unknown{suggest(str(style), get_args(Style))}")
    rng = random.Random(f"words {steps} {seed}")
    out = []
    for _ in range(n):
        who, what, have = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(4, 9)
        told, worked = [f"{who} has {have} {what}."], []
        for _ in range(steps):
            gain = have < 4 or rng.random() < 0.5
            k = rng.randint(2, 9) if gain else rng.randint(1, have - 1)
            told.append(rng.choice(_GAIN if gain else _LOSS).format(who=who, k=k))
            new = have + k if gain else have - k
            worked.append(f"{have} {'+' if gain else '-'} {k} = {new}.")
            have = new
        question = f"{' '.join(told)} How many {what} does {who} have?"
        solution = " ".join(worked)
        if style == "paper":
            text = _TEMPLATE.format(question=question, solution=solution, answer=have)
            prompt, answer = text[: text.rindex(solution)], text[text.rindex(solution) :]
        elif style == "short":
            prompt, answer = " ".join(told), f" {solution}"
        else:
            prompt = f"Problem: {question}\nAnswer:"
            answer = f" {solution} The final answer is {have}"
        out.append(Question(prompt, answer, steps, "word problem"))
    return out


_LANDMARKS = {
    "Eiffel Tower": "Paris", "Colosseum": "Rome", "Brandenburg Gate": "Berlin",
    "Acropolis": "Athens", "Red Square": "Moscow", "Forbidden City": "Beijing",
    "Prado Museum": "Madrid", "Blue Mosque": "Istanbul",
}  # fmt: skip
_COUNTRY = {
    "Paris": "France", "Rome": "Italy", "Berlin": "Germany", "Athens": "Greece",
    "Moscow": "Russia", "Beijing": "China", "Madrid": "Spain", "Istanbul": "Turkey",
}  # fmt: skip
_LANGUAGE = {
    "France": "French", "Italy": "Italian", "Germany": "German", "Greece": "Greek",
    "Russia": "Russian", "China": "Chinese", "Spain": "Spanish", "Turkey": "Turkish",
}  # fmt: skip


def multi_hop(hops: int, n: int = 8, seed: int = 0) -> list[Question]:
    """Make up to n sentences whose end is `hops` facts away (1 to 3), after MQuAKE's questions.

    "People in France speak" -> " French"; "People in the country where Paris lies speak"; "People
    in the country where the city with the Eiffel Tower lies speak". The answers are the same at
    every number of hops. Raises BadInput for other hops or more than the eight sentences there are.
    """
    if hops not in (1, 2, 3) or not 1 <= n <= len(_LANDMARKS):
        raise BadInput(f"hops={hops}, n={n}: hops are 1, 2 or 3, and n is 1..{len(_LANDMARKS)}")
    chosen = random.Random(f"hops {seed}").sample(sorted(_LANDMARKS), n)
    out = []
    for landmark in chosen:
        city = _LANDMARKS[landmark]
        country = _COUNTRY[city]
        place = {
            1: country,
            2: f"the country where {city} lies",
            3: f"the country where the city with the {landmark} lies",
        }[hops]
        prompt, answer = f"People in {place} speak", f" {_LANGUAGE[country]}"
        out.append(Question(prompt, answer, hops, "hops"))
    return out


HUB = {
    "gsm8k": ("openai/gsm8k", (0,)),
    "mquake": ("henryzhongsc/MQuAKE-Remastered", (2, 3, 4)),
    "math": ("EleutherAI/hendrycks_math", (1, 2, 3, 4, 5)),
}
"""The paper's data: name -> (Hugging Face data set, levels of difficulty)."""


def from_hub(name: str, n: int = 20, seed: int = 42) -> list[Question]:
    """Take n questions of each level from the paper's own data ("gsm8k", "mquake" or "math").

    Needs the `datasets` package and, the first time, a network. Prompts are written as the paper's
    code writes them; the order is drawn by `seed`. Raises UnknownName for another data set and
    LwlabError where the package or the data cannot be had.
    """
    if name not in HUB:
        raise UnknownName(f"no questions called {name!r}{suggest(name, HUB)}")
    try:
        import datasets
    except ImportError:
        raise LwlabError("data sets from the Hub need: pip install datasets") from None
    path, levels = HUB[name]
    try:
        if name == "gsm8k":
            rows = datasets.load_dataset(path, "main", split="test")
        elif name == "mquake":
            rows = datasets.load_dataset(path, split="CF3k")
        else:
            rows = datasets.load_dataset(path, "intermediate_algebra", split="test")
    except Exception as e:
        raise LwlabError(
            f"{path} could not be had ({type(e).__name__}: {str(e)[:120]}); it needs a network"
        ) from e
    every = [_question(name, row) for row in rows]
    out: list[Question] = []
    for level in levels:
        mine = [q for q in every if q.level == level]
        random.Random(seed).shuffle(mine)
        out += mine[:n]
    return out


def _question(name: str, row: dict[str, object]) -> Question:
    if name == "gsm8k":
        solution, answer = str(row["answer"]).split("####")
        text = _TEMPLATE.format(
            question=row["question"], solution=solution.strip(), answer=answer.strip()
        )
        cut = text.index("\n\n") + 2
        return Question(text[:cut], text[cut:], 0, name)
    if name == "mquake":
        asked, triples = row["questions"], row["orig_triples"]
        assert isinstance(asked, Sequence)
        assert isinstance(triples, Sequence)
        return Question(f"Question: {asked[0]}\nAnswer:", f" {row['answer']}", len(triples), name)
    level = str(row["level"])[-1]
    prompt, answer = f"Problem: {row['problem']}\nAnswer:", f" {row['solution']}"
    return Question(prompt, answer, int(level) if level.isdigit() else 0, name)
