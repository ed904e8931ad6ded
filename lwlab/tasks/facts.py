"""Facts: a subject and what belongs to it (as in ROME, Meng et al. 2022, arXiv 2202.05262)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lwlab.errors import UnknownName, suggest
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, build, fill


@dataclass(frozen=True)
class Relation:
    """Templates with a {subject}, and the pairs subject -> answer."""

    templates: Mapping[str, str]
    pairs: Mapping[str, str]


def _pairs(text: str) -> dict[str, str]:
    """Read "France Paris, Italy Rome" (an underscore stands for a space)."""
    rows = (row.split() for row in text.split(","))
    return {a.replace("_", " "): b.replace("_", " ") for a, b in rows}


# Only one-word capitals: the answer must be one token, and half a name is no answer.
_CAPITALS = _pairs(
    """France Paris, Italy Rome, Spain Madrid, Germany Berlin, England London, Portugal Lisbon,
    Greece Athens, Austria Vienna, Poland Warsaw, Hungary Budapest, Ireland Dublin, Norway Oslo,
    Sweden Stockholm, Denmark Copenhagen, Finland Helsinki, Russia Moscow, Ukraine Kiev,
    Turkey Ankara, Egypt Cairo, Japan Tokyo, China Beijing, India Delhi, Thailand Bangkok,
    Vietnam Hanoi, Indonesia Jakarta, Philippines Manila, Canada Ottawa, Cuba Havana, Peru Lima,
    Chile Santiago, Brazil Brasilia, Colombia Bogota, Venezuela Caracas, Ecuador Quito,
    Bolivia Sucre, Uruguay Montevideo, Paraguay Asuncion, Kenya Nairobi, Nigeria Abuja, Ghana Accra,
    Senegal Dakar, Morocco Rabat, Algeria Algiers, Tunisia Tunis, Libya Tripoli, Sudan Khartoum,
    Uganda Kampala, Zimbabwe Harare, Iran Tehran, Iraq Baghdad, Syria Damascus, Lebanon Beirut,
    Jordan Amman, Israel Jerusalem, Afghanistan Kabul, Pakistan Islamabad, Nepal Kathmandu,
    Bangladesh Dhaka, Australia Canberra, Belgium Brussels, Switzerland Bern, Bulgaria Sofia,
    Romania Bucharest, Serbia Belgrade, Croatia Zagreb, Iceland Reykjavik, Scotland Edinburgh,
    Wales Cardiff, Taiwan Taipei, Qatar Doha, Somalia Mogadishu, Jamaica Kingston, Cyprus Nicosia,
    Malta Valletta, Latvia Riga, Estonia Tallinn, Lithuania Vilnius, Armenia Yerevan,
    Georgia Tbilisi"""
)
_LANGUAGES = _pairs(
    """France French, Italy Italian, Spain Spanish, Germany German, England English, Japan Japanese,
    Portugal Portuguese, Greece Greek, Poland Polish, Hungary Hungarian, Norway Norwegian,
    Sweden Swedish, Denmark Danish, Finland Finnish, Russia Russian, Ukraine Ukrainian,
    Turkey Turkish, Egypt Arabic, China Chinese, Thailand Thai, Vietnam Vietnamese, Israel Hebrew,
    Iran Persian, Bulgaria Bulgarian, Romania Romanian, Serbia Serbian, Croatia Croatian,
    Korea Korean, Austria German, Mexico Spanish, Argentina Spanish, Brazil Portuguese, Iraq Arabic,
    Cuba Spanish, Peru Spanish, Chile Spanish, Australia English, Jamaica English, Syria Arabic"""
)
_CONTINENTS = _pairs(
    """France Europe, Italy Europe, Spain Europe, Germany Europe, Portugal Europe, Greece Europe,
    Austria Europe, Poland Europe, Hungary Europe, Ireland Europe, Norway Europe, Sweden Europe,
    Denmark Europe, Finland Europe, Belgium Europe, Switzerland Europe, Bulgaria Europe,
    Japan Asia, China Asia, India Asia, Thailand Asia, Vietnam Asia, Korea Asia, Iran Asia,
    Iraq Asia, Pakistan Asia, Nepal Asia, Philippines Asia, Israel Asia, Afghanistan Asia,
    Syria Asia, Indonesia Asia, Malaysia Asia, Kenya Africa, Nigeria Africa, Ghana Africa,
    Senegal Africa, Morocco Africa, Algeria Africa, Tunisia Africa, Sudan Africa, Uganda Africa,
    Ethiopia Africa, Egypt Africa, Zimbabwe Africa, Somalia Africa, Tanzania Africa"""
)
_SYMBOLS = _pairs(
    """hydrogen H, helium He, carbon C, nitrogen N, oxygen O, sodium Na, magnesium Mg, aluminum Al,
    silicon Si, phosphorus P, sulfur S, chlorine Cl, potassium K, calcium Ca, iron Fe, copper Cu,
    zinc Zn, silver Ag, tin Sn, gold Au, mercury Hg, lead Pb, uranium U, nickel Ni, neon Ne,
    iodine I, lithium Li, titanium Ti, chromium Cr, manganese Mn, cobalt Co, platinum Pt,
    arsenic As, boron B, barium Ba, argon Ar, fluorine F"""
)
_OPPOSITES = _pairs(
    """hot cold, big small, fast slow, old young, high low, light dark, strong weak, rich poor,
    happy sad, hard soft, wet dry, long short, good bad, early late, full empty, open closed,
    clean dirty, loud quiet, easy difficult, cheap expensive, thick thin, wide narrow, deep shallow,
    true false, right wrong, up down, left right, black white, first last, new old, hate love,
    win lose, buy sell, push pull, start stop, day night, war peace, summer winter, north south,
    east west, inside outside, above below, before after, male female, alive dead"""
)

RELATIONS: dict[str, Relation] = {
    "capital": Relation(
        {
            "is": "The capital of {subject} is",
            "city": "The capital city of {subject} is called",
            "qa": "Question: What is the capital of {subject}?\nAnswer:",
        },
        _CAPITALS,
    ),
    "language": Relation(
        {
            "speak": "In {subject}, most people speak",
            "official": "The official language of {subject} is",
        },
        _LANGUAGES,
    ),
    "continent": Relation(
        {
            "continent": "The country of {subject} is on the continent of",
            "located": "People who travel to {subject} are travelling to",
        },
        _CONTINENTS,
    ),
    "symbol": Relation({"is": "The chemical symbol for {subject} is"}, _SYMBOLS),
    "opposite": Relation({"is": "The opposite of {subject} is"}, _OPPOSITES),
}


def facts(
    model: Any,
    relation: str = "capital",
    n: int = 16,
    seed: int = 0,
    *,
    template: str | None = None,
    pairs: Mapping[str, str] | None = None,
) -> Task:
    """Make n prompts that ask for what belongs to a subject.

    "The capital of France is" -> " Paris", not " Rome". The twin asks about another subject, whose
    answer is the foil: prompts 2i and 2i + 1 are each other's corruption. relation: a name in
    `RELATIONS` (capital, language, continent, symbol, opposite). template: the name of one of its
    templates (the first by default), or your own with {subject}. pairs: your own subject -> answer.
    Subjects and answers that are not one token are dropped. Positions: SUBJECT, END.

    SmolLM2-135M-Instruct, n=32: logit difference 10.2 (capital), 6.6 (language, "official"),
    5.4 (continent), 9.5 (symbol), 7.6 (opposite), the right one of the two in 94 to 100 % of
    prompts; "located" is weak (2.7, 81 %).

    Raises BadInput when too few facts fit the tokenizer (naming them) or n is too large.
    """
    if relation not in RELATIONS:
        raise UnknownName(f"no relation {relation!r}{suggest(relation, RELATIONS)}")
    known = RELATIONS[relation]
    chosen = template or next(iter(known.templates))
    frame = known.templates.get(chosen, chosen)
    if "{subject}" not in frame:
        raise UnknownName(f"no template {chosen!r} of {relation}{suggest(chosen, known.templates)}")
    fit, rng = Fit(model), random.Random(f"{relation} {seed}")
    given = dict(known.pairs if pairs is None else pairs)
    fits = set(fit.keep([*given, *given.values()], "subjects and answers", 4))
    usable = [(s, a) for s, a in given.items() if s in fits and a in fits]
    twins = [(x, y) for i, x in enumerate(usable) for y in usable[i + 1 :] if x[1] != y[1]]
    fit.check_n(n, 2 * len(twins), f"facts({relation!r})")
    examples: list[Example] = []
    for x, y in rng.sample(twins, -(-n // 2)):
        here, there = (fill(frame, subject=subject) for subject, _ in (x, y))
        where, answers = {"SUBJECT": "subject"}, ((f" {x[1]}",), (f" {y[1]}",))
        example = Example(here, there, *answers, where, ("SUBJECT",))
        examples += [example, example.mirror()]
    groups = [i // 2 for i in range(n)]
    return build(fit, relation, examples[:n], seed=seed, groups=groups)


def country_capital(model: Any, n: int = 16, seed: int = 0, *, template: str = "is") -> Task:
    """Make n prompts such as "The capital of France is" -> " Paris" (see `facts`)."""
    return facts(model, "capital", n, seed, template=template)
