"""Models whose circuit is known, because their weights were written down and not trained.

Four programs of two layers, with integer weights throughout, each with heads and MLPs beside the
circuit that compute real things which nobody reads. Every edge outside the circuit has exactly no
effect, every edge in it has one, so circuit discovery has a right answer here:

* `induction`: "s A B C D A" -> B. A previous-token head, then an induction head.
* `duplicate`: "s A B A" -> B. A duplicate-token head tells a name mover which name to avoid: the
  circuit of indirect objects (Wang et al. 2023, arXiv:2211.00593) reduced to two heads.
* `frac_prevs`: the share of tokens so far that are x, exactly; RASP's first example.
* `reverse`: "a b c d sep d c" -> b. Finds the separator, computes which position mirrors its own,
  and reads the token there: RASP's `reverse` as a causal model can do it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models import toys
from lwlab.models.compiled import Compiled
from lwlab.models.loading import wrap
from lwlab.models.model import Model
from lwlab.models.programs import Cut, Head, Neuron, Part, Program, Wire
from lwlab.tasks.base import Task

NAMES = ("induction", "duplicate", "frac_prevs", "reverse")
START, SEP, X, Y = "start", "sep", "x", "y"
_WORDS = ("Mary", "John", "Tom", "Anna", "cat", "dog", "king", "queen")
_SHARP, _SOFT = 8, 4  # logits of a match; softer where gradients have to see through the softmax

Example = tuple[list[str], str]  # the words of a prompt, and its answer


@dataclass(frozen=True)
class Handmade:
    """A model with a known circuit: `task(n)` asks it, `circuit()` names the edges that answer."""

    name: str
    model: Model
    program: Program
    _example: Callable[[random.Random, Sequence[str]], tuple[Example, Example]]

    def circuit(self, cut: Cut = "patch") -> list[tuple[str, str]]:
        """The true edges (sender, receiver); see `Program.circuit`."""
        return self.program.circuit(cut)

    @property
    def wires(self) -> list[Wire]:
        """All that is connected, the parts that nobody reads too."""
        return self.program.wires()

    def task(self, n: int = 4, seed: int = 0) -> Task:
        """Make n prompts; a prompt and its twin share no content word, so every wire matters.

        The metric is logit(answer) - logit(what the corrupt prompt asks for). Raises BadInput for
        n under 1.
        """
        if n < 1:
            raise BadInput(f"n={n}; a task has at least one prompt")
        rng = random.Random(f"{self.name} {seed}")
        pairs = [self._example(rng, rng.sample(_WORDS, len(_WORDS))) for _ in range(n)]
        answers, foils = ([pair[i][1] for pair in pairs] for i in (0, 1))
        sets = [torch.tensor([[self.model.token_id(w)] for w in side]) for side in (answers, foils)]
        length = len(pairs[0][0][0])
        last = torch.full((n,), length - 1)
        return Task(
            name=self.name, clean=tuple(" ".join(p[0][0]) for p in pairs),
            corrupt=tuple(" ".join(p[1][0]) for p in pairs), answers=tuple(answers),
            foils=tuple(foils), answer_sets=sets[0], foil_sets=sets[1], positions={"END": last},
            changed=(), groups=torch.arange(n), templates=(self.name,) * n,
            lengths=torch.full((n,), length), seed=seed,
        )  # fmt: skip


def build(name: str, groups: int | None = None) -> Handmade:
    """Return one of `NAMES`; `groups` heads of keys and values for its two heads a layer (1 or 2).

    Raises UnknownName for another name, BadInput where the program cannot share keys.
    """
    if name not in NAMES:
        raise UnknownName(f"no handmade model {name!r}{suggest(name, NAMES)}")
    makers = {"induction": induction, "duplicate": duplicate}
    if name in makers:
        return makers[name](groups or 2)
    if groups not in (None, 2):
        raise BadInput(f"{name}: its two heads read different values, so they cannot share them")
    return frac_prevs() if name == "frac_prevs" else reverse()


def induction(groups: int = 1) -> Handmade:
    """ "s A B C D A" -> B; by default both heads of a layer share one key and value.

    a0.h0 copies the previous token; a1.h0 looks for where it equals the current one and copies the
    token there. Beside them: a0.h1 copies the current token, m0 and m1 rewrite tokens, a1.h1
    averages all tokens, and what they write nobody reads.
    """
    v, n = len(_vocabulary()) + 4, 6
    back = torch.zeros(n, n)  # position i asks for position i - 1
    back[range(1, n), range(n - 1)] = _SHARP

    def where(q: torch.Tensor) -> Part:
        return Part("position", q, "position", torch.eye(n))

    heads = (
        (
            Head([where(back)], "token", "previous"),
            Head([where(_SHARP * torch.eye(n))], "token", "same"),
        ),
        (
            Head([Part("token", _SOFT * torch.eye(v), "previous", torch.eye(v))], "token", "next"),
            Head([], "token", "average"),
        ),
    )
    neurons = (
        [Neuron({("token", i): 1}, 0, {("spare", i): 2}) for i in range(v)],
        [Neuron({("token", i): 1, ("next", i): 1}, 0, {("spare", i): 1}) for i in range(v)],
    )
    program = Program(
        v, n, dict.fromkeys(("previous", "same", "next", "average", "spare"), v), heads, neurons,
        {"next": _SOFT * torch.eye(v)}, groups,
    )  # fmt: skip

    def example(rng: random.Random, words: Sequence[str]) -> tuple[Example, Example]:
        at = rng.randrange(3)
        one, two = list(words[:4]), list(words[4:8])
        return tuple(([START, *w, w[at]], w[at + 1]) for w in (one, two))  # type: ignore[return-value]

    return _handmade("induction", program, example)


def duplicate(groups: int = 2) -> Handmade:
    """ "s A B A" -> B: the name that does not come twice.

    a0.h0 finds an earlier place of the current token (the start where there is none) and copies the
    token from there; a1.h0 attends to all names but that one. a0.h1 and a1.h1 average, and m1
    rewrites what a1.h0 found; nobody reads them.
    """
    ids = {w: i + 4 for i, w in enumerate(_vocabulary())}
    v, n = len(ids) + 4, 6
    start = torch.zeros(v, 1)
    start[ids[START]] = 1
    named = torch.ones(v, 1) - start
    one = torch.ones(1, 1)
    content = torch.eye(v) * named  # the start token is copied as nothing
    finder = [
        Part("token", 2 * _SOFT * torch.eye(v), "token", torch.eye(v)),
        Part("position", -4 * _SOFT * torch.eye(n), "position", torch.eye(n)),
        Part("one", _SOFT * one, "token", start),
    ]
    mover = [
        Part("twice", -_SOFT * torch.eye(v), "token", torch.eye(v)),
        Part("one", _SOFT * one, "token", named),
    ]
    heads = (
        (Head(finder, "token", "twice", content), Head([], "token", "average", content)),
        (Head(mover, "token", "other", content), Head([], "token", "average", content)),
    )
    idle: list[Neuron] = []
    neurons = (idle, [Neuron({("other", i): 1}, 0, {("spare", i): 1}) for i in range(v)])
    variables = dict.fromkeys(("twice", "other", "average", "spare"), v)
    program = Program(v, n, variables, heads, neurons, {"other": _SOFT * torch.eye(v)}, groups)

    def example(rng: random.Random, words: Sequence[str]) -> tuple[Example, Example]:
        a, b, c, d = words[:4]
        return ([START, a, b, a], b), ([START, c, d, d], c)

    return _handmade("duplicate", program, example)


def frac_prevs() -> Handmade:
    """The share of tokens so far that are x: the logit of x, to the last bit of a float.

    m0 marks every x and every y, a1.h0 averages the first mark over all tokens so far, and the
    unembedding shows the mean. a1.h1 averages the other mark; layer 0's heads average tokens.
    """
    ids = {w: i + 4 for i, w in enumerate(_vocabulary())}
    v, n = len(ids) + 4, 6
    heads = (
        (Head([], "token", "spare"), Head([], "token", "spare")),
        (Head([], "is_x", "share_x"), Head([], "is_y", "share_y")),
    )
    marks = [
        Neuron({("token", ids[w]): 1}, 0, {(f"is_{c}", 0): 1}) for w, c in ((X, "x"), (Y, "y"))
    ]
    show = torch.zeros(1, v)
    show[0, ids[X]] = 1
    variables = {"spare": v, **dict.fromkeys(("is_x", "is_y", "share_x", "share_y"), 1)}
    program = Program(v, n, variables, heads, (marks, []), {"share_x": show}, 2)

    def example(rng: random.Random, words: Sequence[str]) -> tuple[Example, Example]:
        many, few = rng.sample(range(n + 1), 2)
        rows = []
        for count in (max(many, few), min(many, few)):
            row = [X] * count + [rng.choice([Y, *words]) for _ in range(n - count)]
            rng.shuffle(row)
            rows.append(row)
        return (rows[0], X), (rows[1], Y)

    return _handmade("frac_prevs", program, example)


def reverse() -> Handmade:
    """ "a b c d sep d c" -> b: the words before the separator, backwards, one at a time.

    a0.h0 finds the position s of the separator; m0 computes from it and from its own position p
    the mirrored one, 2 s - 1 - p; a1.h0 reads the token there. a0.h1 and a1.h1 average tokens.
    """
    ids = {w: i + 4 for i, w in enumerate(_vocabulary())}
    v, n = len(ids) + 4, 7
    is_sep = torch.zeros(v, 1)
    is_sep[ids[SEP]] = 1
    finder = Head(
        [Part("one", torch.full((1, 1), float(_SOFT)), "token", is_sep)], "position", "separator"
    )
    reader = Head([Part("mirror", _SOFT * torch.eye(n), "position", torch.eye(n))], "token", "word")
    average = Head([], "token", "average")
    mirror = [
        Neuron({("separator", s): 1, ("position", p): 1}, -1, {("mirror", 2 * s - 1 - p): 1})
        for s in range(n)
        for p in range(s, n)
        if 2 * s - 1 - p >= 0
    ]
    program = Program(
        v, n, {"separator": n, "mirror": n, "word": v, "average": v},
        ((finder, average), (reader, average)), (mirror, []), {"word": _SOFT * torch.eye(v)}, 2,
    )  # fmt: skip

    def example(rng: random.Random, words: Sequence[str]) -> tuple[Example, Example]:
        made = []
        # Separators at different places, so that finding them is part of the answer.
        for s, mine in zip(rng.sample((4, 5), 2), (words[:4], words[4:8])):
            content = list(mine) if s == 4 else [*mine, mine[0]]
            back = content[::-1]
            made.append(([*content, SEP, *back][:n], back[n - s - 1]))
        return made[0], made[1]

    return _handmade("reverse", program, example)


def _vocabulary() -> tuple[str, ...]:
    return (START, SEP, X, Y, *_WORDS)


def _handmade(
    name: str,
    program: Program,
    example: Callable[[random.Random, Sequence[str]], tuple[Example, Example]],
) -> Handmade:
    module = Compiled(program)
    tokenizer = toys.tokenizer(_vocabulary())
    model = wrap(module, module.anatomy(name), tokenizer, name=name)
    return Handmade(name, model, program, example)
