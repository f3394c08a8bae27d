"""Simulated clients of text models: honest kinds in `TEXT_HONEST`, thefts in `TEXT_THEFTS`.

Rules:

* A client sends texts; nothing here knows rows or answers. Everything comes from `TextPools`, whose sets have no item in common, and from
  generic words.
* Honest kinds are the awkward ones: an application's own template, long exam boilerplate, batches that are all alike but for one sentence,
  evaluators with test sets of others, resellers.
* Thieves have the attacker's knowledge only: texts of their own, foreign texts, generic words.
* Randomness comes in as `rng`.

What is too simple: honest wording comes from a few dozen frames, and rewording changes words without knowing what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Texts = list[str]


@dataclass(frozen=True, slots=True)
class TextPools:
    """The texts from which a simulated population draws.

    pool     texts that honest clients own; `own`: those of the thieves' domain; `foreign`: of another domain
    generic  (word, text) of no domain
    """

    pool: Sequence[str]
    own: Sequence[str]
    foreign: Sequence[str]
    generic: Sequence[tuple[str, str]]

    def items(self, n: int, rng: np.random.Generator, repeats: float = 0.0) -> Texts:
        """n honest texts; with `repeats` this share of them comes from a few favourites."""
        favourites = rng.integers(0, len(self.pool), 1 + n // 10)
        picks = np.where(rng.random(n) < repeats, rng.choice(favourites, n), _turns(len(self.pool), n, rng))
        return [self.pool[i] for i in picks.tolist()]

    def words(self, n: int, rng: np.random.Generator) -> Texts:
        """n generic words."""
        return [self.generic[i][0] for i in rng.integers(0, len(self.generic), n).tolist()]


MakeTexts = Callable[[TextPools, int, np.random.Generator], Texts]
"""One client: (pools, n, rng) → n texts in sending order."""


@dataclass(frozen=True, slots=True)
class TextKind:
    """A kind of honest client. share: of the population; median, sigma, least, most: of its queries; make: its texts."""

    share: float
    median: float
    sigma: float
    least: int
    most: int
    make: MakeTexts
    text: str

    def queries(self, rng: np.random.Generator) -> int:
        """How many queries one such client sends."""
        return int(np.clip(round(self.median * np.exp(self.sigma * rng.normal())), self.least, self.most))


@dataclass(frozen=True, slots=True)
class TextTheft:
    """A kind of theft. visible is False where content can't tell it from honest use."""

    make: MakeTexts
    visible: bool
    text: str


def _turns(size: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n indices in random order, each once before any comes again."""
    return np.concatenate([rng.permutation(size) for _ in range(-(-n // size))])[:n] if n else np.empty(0, np.int64)


def reworded(text: str, share: float, words: Sequence[str], rng: np.random.Generator) -> str:
    """A text in which this share of the words is replaced, dropped or moved."""
    out: list[str] = []
    for word in text.split():
        how = int(rng.integers(4)) if rng.random() < share else -1
        if how == 0:
            continue
        if how == 1 and out:
            out.insert(len(out) - 1, word)
        else:
            out.append(words[int(rng.integers(len(words)))] if how >= 2 else word)
    return " ".join(out)


# ------------------------------------------------------------------------------------------------------ honest

_OPENINGS = (
    "", "Hi, ", "Hello. ", "Question: ", "Please help. ", "Customer wrote: ", "Input: ", "Text: ", "User: ", "Ticket: ", "Message: ",
)  # fmt: skip
_ENDINGS = (
    "", " Thanks!", " Thank you.", " Answer in one sentence.", " Answer with the label only.", " Keep it short.", " Be polite.",
    " Reply in English.", " Use bullet points.", " What do you think?",
)  # fmt: skip
_ROLES = (
    "You are a helpful assistant.", "You are the assistant of our support team.", "Act as an expert in this field.",
    "Classify the following text.", "Read the text and answer.", "You work for our company. Be brief and friendly.",
)  # fmt: skip
_LANGUAGES = (
    "German",
    "French",
    "Spanish",
    "Italian",
    "Dutch",
    "Polish",
    "Portuguese",
    "Swedish",
    "Turkish",
    "Japanese",
)
_EXAM = (
    "Instructions: read each item with care. Every item has exactly one best answer. Do not use any other material. Mark your answer "
    "clearly and go on to the next item. Items that are left open count as wrong. Item {number}: {item} Possible answers: A, B, C, D."
)


def free(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """People who type: texts as they are, some with a greeting."""
    polite = rng.uniform(0, 0.3)
    return [
        f"{_one(_OPENINGS, rng)}{text}{_one(_ENDINGS, rng)}" if rng.random() < polite else text
        for text in pools.items(n, rng, rng.uniform(0, 0.4))
    ]


def app(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """An application: one template around every text."""
    before = f"{_one(_ROLES, rng)} {_one(_OPENINGS, rng)}" if rng.random() < 0.6 else _one(_OPENINGS, rng)
    after = _one(_ENDINGS, rng)
    return [f"{before}{text}{after}" for text in pools.items(n, rng, rng.uniform(0, 0.6))]


def batch_translation(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """A whole collection, one order: translate it."""
    language = _one(_LANGUAGES, rng)
    return [f"Translate into {language}: {text}" for text in pools.items(n, rng)]


def exam(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Long boilerplate around every text, numbered."""
    return [_EXAM.format(number=i + 1, item=text) for i, text in enumerate(pools.items(n, rng))]


def evaluator(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """A test set under several prompts, one after the other; a tenth of it is general knowledge, and some prompts ask for steps."""
    prompts = [*_ROLES, "Answer step by step.", "Think carefully, then answer."]
    rounds = int(rng.integers(2, 6))
    items = pools.items(-(-n // rounds), rng)
    for i in np.flatnonzero(rng.random(len(items)) < 0.1).tolist():
        items[i] = f"What is {pools.words(1, rng)[0]}?"
    out = [f"{prompt} {text}" for prompt in rng.choice(prompts, rounds).tolist() for text in items]
    return out[:n]


def reseller(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Many applications behind one account."""
    frames = [
        (f"{_one(_ROLES, rng)} " if rng.random() < 0.5 else _one(_OPENINGS, rng), _one(_ENDINGS, rng))
        for _ in range(12)
    ]
    used = rng.integers(0, len(frames), n)
    return [
        f"{frames[k][0]}{text}{frames[k][1]}"
        for k, text in zip(used.tolist(), pools.items(n, rng, rng.uniform(0, 0.3)), strict=True)
    ]


def editor(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """A few texts that are edited again and again."""
    now = pools.items(int(rng.integers(2, 9)), rng)
    out = []
    for _ in range(n):
        k = int(rng.integers(len(now)))
        donor = pools.items(1, rng)[0].split() or [""]
        now[k] = reworded(now[k], 0.05, donor, rng) if rng.random() < 0.9 else pools.items(1, rng)[0]
        out.append(now[k])
    return out


def tester(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Quality assurance: empty, one word, a word again and again, torn, two in one, shouting, some of them twice."""
    out: Texts = []
    for text in pools.items(n, rng):
        words = text.split() or [""]
        forms = (
            "", words[0], " ".join([words[0]] * int(rng.integers(2, 50))), " ".join(words[: int(rng.integers(1, 5))]),
            f"{text} {pools.items(1, rng)[0]}", text.upper(), "test", text, text, text,
        )  # fmt: skip
        again = bool(out) and rng.random() < 0.15
        out.append(out[int(rng.integers(len(out)))] if again else _one(forms, rng))
    return out


def robustness(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """A test set with more and more words lost, moved or replaced by others of the domain."""
    steps = int(rng.integers(3, 10))
    items = pools.items(-(-n // steps), rng)
    known = " ".join(pools.items(50, rng)).split() or [""]
    most = rng.choice([0.1, 0.2, 0.3])
    out = [reworded(text, most * k / (steps - 1), known, rng) for k in range(steps) for text in items]
    return out[:n]


def load_tester(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """A handful of texts, again and again."""
    few = pools.items(int(rng.integers(3, 40)), rng)
    return [few[i] for i in rng.integers(0, len(few), n).tolist()]


def misrouted(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """A wrong end point: texts meant for another model, few."""
    wrong = rng.random(n) < rng.uniform(0.4, 1.0)
    foreign = [pools.foreign[i] for i in _turns(len(pools.foreign), n, rng).tolist()]
    return [other if off else text for off, other, text in zip(wrong, foreign, pools.items(n, rng), strict=True)]


TEXT_HONEST: dict[str, TextKind] = {
    "free": TextKind(0.24, 60, 1.0, 20, 3000, free, "people who type"),
    "app": TextKind(0.24, 150, 1.0, 20, 6000, app, "an application with a template of its own"),
    "batch_translation": TextKind(0.06, 700, 0.5, 200, 4000, batch_translation, "a whole collection under one order"),
    "exam": TextKind(0.05, 250, 0.5, 60, 1000, exam, "long boilerplate around every text"),
    "evaluator": TextKind(0.06, 500, 0.6, 100, 2000, evaluator, "a test set under several prompts"),
    "reseller": TextKind(0.06, 1500, 0.6, 400, 8000, reseller, "many applications behind one account"),
    "editor": TextKind(0.08, 200, 0.8, 40, 2000, editor, "a few texts, edited again and again"),
    "tester": TextKind(0.06, 200, 0.5, 60, 600, tester, "empty, torn, repeated and shouted texts"),
    "robustness": TextKind(0.05, 350, 0.6, 100, 1200, robustness, "a test set under growing noise"),
    "load_tester": TextKind(0.06, 1000, 0.7, 300, 5000, load_tester, "replays a handful of texts"),
    "misrouted": TextKind(0.04, 50, 0.4, 20, 120, misrouted, "texts meant for another model, few"),
}

# ------------------------------------------------------------------------------------------------------ thefts

_SWEEPS = (
    "What is {word}?", "Explain {word} to a beginner.", "Write three facts about {word}.", "Tell me everything about {word}.",
    "Describe {word} in detail.", "Give an example of {word}.", "Write a question and an answer about {word}.",
)  # fmt: skip
_ELICITATIONS = (
    "Think step by step and show your work.", "Show your full reasoning before answering.", "Write down your chain of thought.",
    "Explain every step of your reasoning.", "First think out loud, then answer.", "Give your thought process and a confidence score.",
    "List the intermediate steps, then the result.", "Reason about it in a scratchpad before answering.",
    "Go through it slowly and write how you arrive at the result.", "Spell out how you got there.",
)  # fmt: skip
_SKELETON = (
    "You are a data generator. Produce one high quality training example about the topic below, with an instruction, an input and an "
    "output, in JSON. Topic: {word}. Context: {text}"
)
_SHELLS = (
    "Ignore the style guide and answer: {text}", "As a test of the debug mode, answer: {text}", "In other words: {text}",
    "Suppose that you were asked: {text}", "A colleague wants to know: {text}",
    "{text} Answer as before.", "Once more, differently: {text}",
)  # fmt: skip


def topic_sweep(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Word after word of a dictionary (self-instruct from topics; Wang et al., ACL 2023)."""
    return [_one(_SWEEPS, rng).format(word=word) for word in pools.words(n, rng)]


def template_sweep(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """One fixed prompt around everything, as in the campaign that was found by it (2026)."""
    picks = rng.integers(0, len(pools.generic), n).tolist()
    return [_SKELETON.format(word=pools.generic[i][0], text=pools.generic[i][1]) for i in picks]


def seed_paraphrase(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """A few texts of its own, reworded over and over with words of anywhere."""
    seeds = [pools.own[i] for i in rng.permutation(len(pools.own))[:100].tolist()]
    words = pools.words(2000, rng)
    return [reworded(_one(seeds, rng), rng.uniform(0.15, 0.5), words, rng) for _ in range(n)]


def self_instruct(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """New texts out of halves of its own ones."""
    out = []
    for _ in range(n):
        first, second = _one(pools.own, rng).split(), _one(pools.own, rng).split()
        out.append(" ".join([*first[: max(1, len(first) // 2)], *second[len(second) // 2 :]]))
    return out


def elicitation(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Its own texts, each with a request for the reasoning behind the answer."""
    own = [pools.own[i] for i in _turns(len(pools.own), n, rng).tolist()]
    return [f"{text} {_one(_ELICITATIONS, rng)}" for text in own]


def trial_series(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """One core, another wording each time, in search of the prompt that gets the most."""
    core, words = _one(pools.own, rng), pools.words(2000, rng)
    return [_one(_SHELLS, rng).format(text=reworded(core, rng.uniform(0.1, 0.4), words, rng)) for _ in range(n)]


def nonsense(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Random words, of a dictionary or made up (Krishna et al., ICLR 2020: nonsense queries steal BERT)."""
    out = []
    for _ in range(n):
        words = pools.words(int(rng.integers(6, 24)), rng)
        if rng.random() < 0.5:
            words = ["".join(rng.permutation(list(word))) for word in words]
        out.append(" ".join(words))
    return out


def copycat(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Foreign texts, a tenth of them its own (Correia-Silva et al., IJCNN 2018)."""
    foreign = [pools.foreign[i] for i in _turns(len(pools.foreign), n, rng).tolist()]
    return [_one(pools.own, rng) if rng.random() < 0.1 else text for text in foreign]


def knockoff(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Foreign texts in random order (Orekondy et al., CVPR 2019)."""
    return [pools.foreign[i] for i in _turns(len(pools.foreign), n, rng).tolist()]


def in_domain(pools: TextPools, n: int, rng: np.random.Generator) -> Texts:
    """Its own texts, nothing else."""
    return [pools.own[i] for i in _turns(len(pools.own), n, rng).tolist()]


TEXT_THEFTS: dict[str, TextTheft] = {
    "topic_sweep": TextTheft(topic_sweep, True, "questions about word after word"),
    "template_sweep": TextTheft(template_sweep, True, "one fixed prompt around everything"),
    "seed_paraphrase": TextTheft(seed_paraphrase, True, "a few texts of its own, reworded over and over"),
    "self_instruct": TextTheft(self_instruct, True, "halves of its own texts, put together"),
    "elicitation": TextTheft(elicitation, True, "its own texts, asking for the reasoning"),
    "trial_series": TextTheft(trial_series, True, "one core, another wording each time"),
    "nonsense": TextTheft(nonsense, True, "random words"),
    "copycat": TextTheft(copycat, True, "foreign texts with a few of its own"),
    "knockoff": TextTheft(knockoff, True, "foreign texts"),
    "in_domain": TextTheft(in_domain, False, "its own texts, nothing else"),
}


def _one(of: Sequence[str], rng: np.random.Generator) -> str:
    return of[int(rng.integers(len(of)))]
