"""Tasks: prompts with clean and corrupt twins and a metric; text to read; digits to classify."""

from __future__ import annotations

from lwlab.tasks.agreement import TEMPLATES as AGREEMENT_TEMPLATES
from lwlab.tasks.agreement import agreement
from lwlab.tasks.arithmetic import arithmetic
from lwlab.tasks.base import Task
from lwlab.tasks.concepts import CONCEPTS, Concept, concept, read_concept
from lwlab.tasks.corpus import corpus
from lwlab.tasks.digits import Digits, digits
from lwlab.tasks.evaluate import evaluate
from lwlab.tasks.facts import RELATIONS, Relation, country_capital, facts
from lwlab.tasks.greater_than import greater_than
from lwlab.tasks.grid import arithmetic_grid
from lwlab.tasks.induction import induction
from lwlab.tasks.ioi import RELP_PAIRS as IOI_RELP_PAIRS
from lwlab.tasks.ioi import TEMPLATES as IOI_TEMPLATES
from lwlab.tasks.ioi import ioi
from lwlab.tasks.metrics import Metric, kl, log_prob, logit, logit_diff, prob_diff, top1
from lwlab.tasks.perplexity import perplexity
from lwlab.tasks.pronouns import TEMPLATES as PRONOUN_TEMPLATES
from lwlab.tasks.pronouns import pronouns

__all__ = [
    "AGREEMENT_TEMPLATES",
    "CONCEPTS",
    "IOI_RELP_PAIRS",
    "IOI_TEMPLATES",
    "PRONOUN_TEMPLATES",
    "RELATIONS",
    "Concept",
    "Digits",
    "Metric",
    "Relation",
    "Task",
    "agreement",
    "arithmetic",
    "arithmetic_grid",
    "concept",
    "corpus",
    "country_capital",
    "digits",
    "evaluate",
    "facts",
    "greater_than",
    "induction",
    "ioi",
    "kl",
    "log_prob",
    "logit",
    "logit_diff",
    "perplexity",
    "prob_diff",
    "pronouns",
    "read_concept",
    "top1",
]
