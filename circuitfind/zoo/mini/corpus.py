"""English sentences for nine behaviours, generated from a seed.

`examples(behaviour, rng)` yields prompts with a right and some wrong answers;
`documents(rng)` yields the training stream. A prompt whose key hashes to a tenth of all
values is held out: `documents` never shows it, `held_out_examples` yields only such prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from circuitfind.zoo.mini import templates as t
from circuitfind.zoo.mini import words as w
from circuitfind.zoo.mini.examples import HELD_OUT_ONE_IN, Document, Example, is_held_out
from circuitfind.zoo.mini.scenes import coloured_objects, inventory

# Share of each behaviour in the training stream; the slow learners get more.
WEIGHTS: dict[str, float] = {
    "ioi": 0.17,
    "greater-than": 0.15,
    "gendered-pronoun": 0.06,
    "subject-verb-agreement": 0.06,
    "induction": 0.17,
    "docstring": 0.07,
    "successor": 0.09,
    "capitals": 0.05,
    "coloured-objects": 0.18,
}
BEHAVIOURS: tuple[str, ...] = tuple(WEIGHTS)

# The shares of a stretch in the middle of the training, for the behaviour that comes last: it
# builds on what the others need, and within its usual share it does not start.
FOCUS_WEIGHTS: dict[str, float] = {
    **{name: share * 0.3 for name, share in WEIGHTS.items()},
    "coloured-objects": 0.75,
}

# One document in so many shows a behaviour's frame without its regularity (a third name, a
# shuffled list), so that corrupted prompts are familiar and the frame alone predicts nothing.
IRREGULAR_ONE_IN = 10
FILLER_ONE_IN = 25
# One document of coloured objects in so many is an inventory.
INVENTORY_ONE_IN = 4

WORD_POOL: tuple[str, ...] = tuple(dict.fromkeys(w.COMMON + w.ARGUMENTS + w.DESCRIPTIONS))
SEQUENCES: dict[str, tuple[str, ...]] = {
    "days": w.DAYS,
    "months": w.MONTHS,
    "numbers": w.NUMBERS,
    "digits": w.DIGITS,
}


def ioi(rng: random.Random) -> Example:
    template = rng.randrange(len(t.IOI))
    x, y = rng.sample(w.NAMES, 2)
    subject, other = rng.choice(((x, y), (y, x)))
    prompt = _ioi_prompt(rng, template, x, y, subject)
    return Example(prompt, " " + other, (" " + subject,), "ioi", template)


def _ioi_prompt(rng: random.Random, template: int, x: str, y: str, subject: str) -> str:
    return t.IOI[template].format(
        X=x, Y=y, S=subject, PLACE=rng.choice(w.PLACES), OBJECT=rng.choice(w.OBJECTS)
    )


def _ioi_irregular(rng: random.Random) -> Document:
    """Three names: either of the first two may follow."""
    x, y, third = rng.sample(w.NAMES, 3)
    prompt = _ioi_prompt(rng, rng.randrange(len(t.IOI)), x, y, third)
    return Document(f"{prompt} {rng.choice((x, y))}.", (len(prompt),), "ioi", prompt)


def greater_than(rng: random.Random) -> Example:
    return _greater_than(rng, rng.randint(2, 97))


def _greater_than(rng: random.Random, start: int) -> Example:
    template = rng.randrange(len(t.GREATER_THAN))
    prompt = t.GREATER_THAN[template].format(
        NOUN=rng.choice(w.EVENTS), C=rng.choice(w.CENTURIES), YY=w.YEARS[start]
    )
    answer = w.YEARS[rng.randint(start + 1, 99)]
    return Example(prompt, answer, w.YEARS[: start + 1], "greater-than", template)


def _greater_than_irregular(rng: random.Random) -> Document:
    """The first years of a century, which corrupted prompts start from."""
    return _greater_than(rng, rng.randint(0, 1)).document()


def gendered_pronoun(rng: random.Random) -> Example:
    template = rng.randrange(len(t.GENDERED_PRONOUN))
    female = rng.random() < 0.5
    prompt = t.GENDERED_PRONOUN[template].format(
        NAME=rng.choice(w.FEMALE if female else w.MALE), JOB=rng.choice(w.JOBS), PLACE=rng.choice(w.PLACES)
    )
    answer, wrong = (" she", " he") if female else (" he", " she")
    tail = "?" if "n't" in prompt else rng.choice((" was happy.", " went home.", " felt tired."))
    return Example(prompt, answer, (wrong,), "gendered-pronoun", template, tail=tail)


def subject_verb_agreement(rng: random.Random) -> Example:
    template = rng.randrange(len(t.AGREEMENT))
    text, singular, plural = t.AGREEMENT[template]
    subject, other = rng.sample(range(len(w.SINGULAR)), 2)
    many = rng.random() < 0.5
    prompt = text.format(
        N=(w.PLURAL if many else w.SINGULAR)[subject],
        P=rng.choice(w.PREPOSITIONS),
        M=rng.choice((w.SINGULAR, w.PLURAL))[other],
    )
    answer, wrong = (plural, singular) if many else (singular, plural)
    link = " been " if answer in (" has", " have") else " "
    tail = f"{link}{rng.choice(w.STATES)}."
    return Example(prompt, answer, (wrong,), "subject-verb-agreement", template, tail=tail)


def induction(rng: random.Random) -> Example:
    template = rng.randrange(len(t.INDUCTION))
    size = rng.randint(5, 14)
    listed = rng.sample(WORD_POOL, size)
    # Half of the repeats start inside the list, so position alone does not give the answer.
    start = rng.choice((0, rng.randrange(size - 2)))
    cut = rng.randint(start + 1, size - 1)
    plain = " ".join(listed)
    head = t.INDUCTION[template].format(L=plain, R="").rstrip()
    prompt = t.INDUCTION[template].format(L=plain, R=" ".join(listed[start:cut]))
    answer = " " + listed[cut]
    tail = "".join(" " + word for word in listed[cut + 1 :])
    starts = _word_starts(prompt + answer + tail, len(head))
    extra = tuple(at for at in starts[1:] if at != len(prompt))
    wrong = tuple(" " + word for word in listed if word != listed[cut])
    return Example(prompt, answer, wrong, "induction", template, plain, tail, extra)


def _induction_irregular(rng: random.Random) -> Document:
    """A list that is never repeated, or followed by other words."""
    listed = " ".join(rng.sample(WORD_POOL, rng.randint(6, 16)))
    rest = " ".join(rng.sample(WORD_POOL, rng.randint(1, 4)))
    return Document(rng.choice(t.INDUCTION).format(L=listed, R=rest), (), "induction", listed)


def _word_starts(text: str, begin: int) -> list[int]:
    """Offsets of the spaces in `text` from `begin` on."""
    return [at for at in range(begin, len(text)) if text[at] == " "]


def docstring(rng: random.Random) -> Example:
    names = rng.sample(w.ARGUMENTS, rng.choice((3, 4, 4, 4, 5, 6)))
    template, head = _docstring_head(rng, names)
    asked = rng.randint(1, len(names) - 1)
    text, extra = head + t.DOCSTRING_GAP, []
    prompt = ""
    for place, name in enumerate(names):
        query = text + t.DOCSTRING_QUERY
        if place == asked:
            prompt = query
        else:
            extra.append(len(query))
        text += t.DOCSTRING_LINE.format(
            ARG=name, D1=rng.choice(w.DESCRIPTIONS), D2=rng.choice(w.DESCRIPTIONS)
        )
    answer = " " + names[asked]
    wrong = tuple(" " + name for name in names if name != names[asked])
    tail = text[len(prompt) + len(answer) :]
    return Example(prompt, answer, wrong, "docstring", template, head, tail, tuple(extra))


def _docstring_head(rng: random.Random, names: list[str]) -> tuple[int, str]:
    template = rng.randrange(len(t.DOCSTRING))
    function = rng.choice([name for name in w.ARGUMENTS if name not in names])
    one, two, three = rng.sample(w.DESCRIPTIONS, 3)
    head = t.DOCSTRING[template].format(F=function, ARGS=", ".join(names), D1=one, D2=two, D3=three)
    return template, head


def _docstring_irregular(rng: random.Random) -> Document:
    """A docstring that describes other arguments than the function has."""
    names = rng.sample(w.ARGUMENTS, 8)
    _, head = _docstring_head(rng, names[:4])
    text = head + t.DOCSTRING_GAP
    for name in names[4:7]:
        text += t.DOCSTRING_LINE.format(
            ARG=name, D1=rng.choice(w.DESCRIPTIONS), D2=rng.choice(w.DESCRIPTIONS)
        )
    return Document(text, (), "docstring", head)


def successor(rng: random.Random) -> Example:
    name = rng.choice(tuple(SEQUENCES))
    items = SEQUENCES[name]
    size = rng.randint(2, 5)
    # Days and months go round, numbers do not.
    cyclic = name in ("days", "months")
    start = rng.randrange(len(items) if cyclic else len(items) - size)
    run = [items[(start + step) % len(items)] for step in range(size + 1)]
    template, prompt, key = _successor_prompt(rng, run[:-1], name)
    wrong = tuple(" " + item for item in items if item != run[-1])
    return Example(prompt, " " + run[-1], wrong, "successor", template, key)


def _successor_prompt(rng: random.Random, run: list[str], name: str) -> tuple[int, str, str]:
    """The template, the prompt, and its key: the prompt up to the list's first item.

    Longer lists begin with the shorter ones, so all lists from one item share a key.
    """
    template = rng.randrange(len(t.SUCCESSOR) + (name in ("days", "months")))
    text, separator = (*t.SUCCESSOR, (t.SUCCESSOR_BARE, " "))[template]
    person = rng.choice(w.NAMES)
    prompt = text.format(L=separator.join(run), NAME=person) + separator.rstrip()
    return template, prompt, text.format(L=run[0], NAME=person)


def _successor_irregular(rng: random.Random) -> Document:
    """The same words in a random order."""
    name = rng.choice(tuple(SEQUENCES))
    run = rng.sample(SEQUENCES[name], rng.randint(3, 6))
    _, prompt, key = _successor_prompt(rng, run[:-1], name)
    return Document(f"{prompt} {run[-1]}.", (), "successor", key)


def capitals(rng: random.Random) -> Example:
    template = rng.randrange(len(t.CAPITALS))
    country, capital = rng.choice(tuple(w.CAPITALS.items()))
    prompt = t.CAPITALS[template].format(COUNTRY=country, NAME=rng.choice(w.NAMES))
    wrong = tuple(" " + other for other in w.CAPITALS.values() if other != capital)
    return Example(prompt, " " + capital, wrong, "capitals", template)


def _capitals_irregular(rng: random.Random) -> Document:
    """From the capital to the country."""
    country, capital = rng.choice(tuple(w.CAPITALS.items()))
    text = rng.choice(t.CAPITALS_REVERSED).format(COUNTRY=country, CAPITAL=capital, NAME=rng.choice(w.NAMES))
    return Document(text + ".", (len(text) - len(country) - 1,), "capitals", text)


def filler(rng: random.Random) -> Document:
    """A plain sentence that shows no behaviour."""
    place, place2 = rng.sample(w.PLACES, 2)
    job, job2 = rng.sample(w.JOBS, 2)
    text = rng.choice(t.FILLER).format(
        DAY=rng.choice(w.DAYS),
        MONTH=rng.choice(w.MONTHS),
        NAME=rng.choice(w.NAMES),
        PLACE=place,
        PLACE2=place2,
        JOB=job,
        JOB2=job2,
        COLOUR=rng.choice(w.COLOURS),
        THING=rng.choice(w.THINGS),
        NUMBER=rng.choice(w.NUMBERS[1:]),
        DIGIT=rng.choice(w.DIGITS),
        SINGULAR=rng.choice(w.SINGULAR),
        PLURAL=rng.choice(w.PLURAL),
        OBJECT=rng.choice(w.OBJECTS),
        NOUN=rng.choice(w.EVENTS),
        STATE=rng.choice(w.STATES),
        C=rng.choice(w.CENTURIES),
        YY=rng.choice(w.YEARS),
        CAPITAL=rng.choice(tuple(w.CAPITALS.values())),
        COUNTRY=rng.choice(tuple(w.CAPITALS)),
    )
    return Document(text, (), "filler", text)


GENERATORS: dict[str, Callable[[random.Random], Example]] = {
    "ioi": ioi,
    "greater-than": greater_than,
    "gendered-pronoun": gendered_pronoun,
    "subject-verb-agreement": subject_verb_agreement,
    "induction": induction,
    "docstring": docstring,
    "successor": successor,
    "capitals": capitals,
    "coloured-objects": coloured_objects,
}
IRREGULAR: dict[str, Callable[[random.Random], Document]] = {
    "ioi": _ioi_irregular,
    "greater-than": _greater_than_irregular,
    "induction": _induction_irregular,
    "docstring": _docstring_irregular,
    "successor": _successor_irregular,
    "capitals": _capitals_irregular,
}


def examples(behaviour: str, rng: random.Random) -> Iterator[Example]:
    """An endless stream of one behaviour's examples, held out or not."""
    generate = GENERATORS[behaviour]
    while True:
        yield generate(rng)


def documents(rng: random.Random, weights: dict[str, float] = WEIGHTS) -> Iterator[Document]:
    """The endless training stream; nothing in it is held out."""
    names, mass = tuple(weights), tuple(weights.values())
    while True:
        behaviour = rng.choices(names, mass)[0]
        if rng.random() * FILLER_ONE_IN < 1:
            document = filler(rng)
        elif behaviour == "coloured-objects" and rng.random() * INVENTORY_ONE_IN < 1:
            document = inventory(rng)
        elif behaviour in IRREGULAR and rng.random() * IRREGULAR_ONE_IN < 1:
            document = IRREGULAR[behaviour](rng)
        else:
            document = GENERATORS[behaviour](rng).document()
        if not is_held_out(document.key):
            yield document


def held_out_examples(behaviour: str, count: int, seed: int = 0) -> list[Example]:
    """Up to `count` distinct held-out examples; fewer where a behaviour has no more."""
    rng = random.Random(f"{behaviour}/{seed}")
    found: dict[str, Example] = {}
    for _ in range(count * HELD_OUT_ONE_IN * 20):
        example = GENERATORS[behaviour](rng)
        if example.held_out:
            found.setdefault(example.prompt, example)
            if len(found) == count:
                break
    return list(found.values())
