"""Texts to steer with: two sides of a labelled concept, words to read the effect on, questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.steering.effects import Lists
from lwlab.tasks.concepts import Concept
from lwlab.tasks.facts import RELATIONS
from lwlab.tasks.fit import Fit

#: What may follow a prompt that says nothing yet, for and against.
FEELING = Lists(
    prompts=(
        "I think that this film is",
        "Honestly, the meal was",
        "My stay at the hotel was",
        "The new teacher is",
    ),
    wanted=(
        *("good", "great", "nice", "wonderful", "amazing", "beautiful", "excellent", "lovely"),
        *("happy", "perfect", "fun"),
    ),
    unwanted=(
        *("bad", "terrible", "awful", "horrible", "poor", "ugly", "boring", "sad", "wrong"),
        *("worse", "hard"),
    ),
)

# Written for this library. No two are a pair, and the feeling is in the whole sentence.
_SULLEN = """
We waited for two hours and the food was cold.
I hated every minute of that dreary show.
The phone broke after a week and nobody would help me.
My room smelled of smoke and the bed was filthy.
He shouted at us and ruined the whole evening.
It rained all day and I felt lonely and sick.
The story drags on and the acting is painful to watch.
They lost my luggage and refused to pay for it.
She cried all night because her dog had died.
What a waste of money, I want it all back.
The driver was rude and we missed our train.
I am tired of this noisy and dangerous street.
The soup tasted like dirty water.
Our neighbours keep complaining and it makes me angry.
The lecture was dull and half of us fell asleep.
Everything went badly and I gave up in despair.
""".strip().splitlines()
_CHEERFUL = """
The children laughed and the sun shone all afternoon.
I love this song and I smile whenever I hear it.
Our guide was friendly and showed us the best views.
The cake was delicious and everyone asked for more.
She won the prize and we danced until midnight.
What a delightful garden, I could stay here forever.
The nurses were kind and I recovered quickly.
He surprised me with flowers and a warm letter.
It works like a dream and I recommend it to all my friends.
We found a charming little cafe by the river.
The concert was brilliant and the crowd cheered.
I finally got the job and my parents are so proud.
The puppy is healthy and full of joy.
Thanks to her clever idea we saved a lot of time.
The room was bright, clean and comfortable.
A thrilling story that I could not put down.
""".strip().splitlines()


@dataclass(frozen=True)
class Sides:
    """Texts of two classes: to learn from, and held out (of other words)."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    held_source: tuple[str, ...]
    held_target: tuple[str, ...]

    def unseen(self, lists: Lists) -> Lists:
        """Return the lists without words that stand in the texts learnt from.

        Raises BadInput where none is left of a list.
        """
        text = " ".join([*self.source, *self.target]).lower()
        kept = [
            tuple(w for w in words if w not in text) for words in (lists.wanted, lists.unwanted)
        ]
        if not all(kept):
            raise BadInput("every word of a list stands in the texts learnt from: give others")
        return Lists(lists.prompts, *kept)


def moods(n: int = 8) -> Sides:
    """Return n sullen sentences (source) and n cheerful ones (target), and as many held out.

    Unpaired, of six to thirteen words. Raises BadInput for an n there are no sentences for.
    """
    if not 1 <= n <= len(_SULLEN) // 2:
        raise BadInput(f"moods was asked for n={n}; there are 1 to {len(_SULLEN) // 2} of each")
    return Sides(*(tuple(s[i * n : i * n + n]) for i in (0, 1) for s in (_SULLEN, _CHEERFUL)))


def sides(concept: Concept, n: int = 8) -> Sides:
    """Take n texts of each class to learn from and n held out, one of each class from a group.

    Groups share their words, so no word of class is met twice, and held-out texts have others.
    The first class of the concept is the source. Raises BadInput for a concept of more than two
    classes, or with fewer than 2n groups that hold both.
    """
    if len(concept.classes) != 2:
        raise BadInput(f"{concept.name} has classes {concept.classes}: steering needs two")
    found: dict[int, dict[int, str]] = {}
    for text, y, g in zip(concept.texts, concept.labels, concept.groups):
        found.setdefault(g, {}).setdefault(y, text)
    pairs = [(of[0], of[1]) for of in found.values() if len(of) == 2]
    if n < 1 or len(pairs) < 2 * n:
        raise BadInput(
            f"{concept.name} has {len(pairs)} groups with both classes; n={n} takes {2 * n}: ask "
            "for more texts, or a smaller n"
        )
    own, held = pairs[:n], pairs[n : 2 * n]
    return Sides(*(tuple(p[i] for p in part) for part in (own, held) for i in (0, 1)))


@dataclass(frozen=True)
class Questions:
    """Prompts with an answer each, as text with its leading space; prompts are independent."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def choices(self) -> tuple[str, ...]:
        """The different answers, in sorted order."""
        return tuple(sorted(set(self.answers)))

    def part(self, start: int, stop: int) -> Questions:
        """Return the questions from `start` to before `stop`."""
        return Questions(self.prompts[start:stop], self.answers[start:stop])

    def answered(self) -> list[str]:
        """Each prompt with its answer."""
        return [p + a for p, a in zip(self.prompts, self.answers)]

    def mistaken(self) -> list[str]:
        """Each prompt with the answer of the next: the same words, so that only fit differs."""
        turned = [*self.answers[1:], *self.answers[:1]]
        return [p + a for p, a in zip(self.prompts, turned)]


def opposites(model: Model, n: int = 36, shots: int = 2, seed: int = 0) -> Questions:
    """Make n questions such as "hot cold, big small, fast" -> " slow", with `shots` examples.

    Words that are not one token are dropped. Raises BadInput where the tokenizer leaves too few.
    """
    pairs = RELATIONS["opposite"].pairs
    fit = Fit(model)
    one = set(fit.keep([*pairs, *pairs.values()], "words", 2))
    usable = [(a, b) for a, b in pairs.items() if a in one and b in one]
    if n < 1 or shots < 0 or n + shots > len(usable):
        raise BadInput(
            f"n={n} questions with {shots} examples: this tokenizer allows {len(usable)} words."
            f"{fit.why()}"
        )
    random.Random(f"opposites {seed}").shuffle(usable)
    return _asked(usable[:shots], usable[shots : shots + n])


def _asked(shown: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> Questions:
    before = "".join(f" {a} {b}," for a, b in shown)
    return Questions(
        tuple(f"{before} {a}".strip() for a, _ in asked), tuple(f" {b}" for _, b in asked)
    )
