"""Scenes of coloured objects: the behaviour that comes last, and the documents that teach it."""

from __future__ import annotations

import random

from circuitfind.zoo.mini import templates as t
from circuitfind.zoo.mini import words as w
from circuitfind.zoo.mini.examples import Document, Example


def coloured_objects(rng: random.Random) -> Example:
    scene = rng.randrange(len(t.SCENES))
    things = rng.sample(w.THINGS, 3)
    colours = rng.sample(w.COLOURS, 3)
    context = t.SCENES[scene].format(
        SURFACE=rng.choice(w.SURFACES),
        NAME=rng.choice(w.NAMES),
        **{f"O{place}": thing for place, thing in enumerate(things, 1)},
        **{f"C{place}": colour for place, colour in enumerate(colours, 1)},
    )
    order = rng.sample(range(3), 3)
    question = rng.randrange(len(t.QUESTIONS))
    prompt = context + t.QUESTIONS[question].format(O=things[order[0]])
    # A training document then asks for the other things, or goes through all of them.
    text = f"{prompt} {colours[order[0]]}."
    extra = []
    if rng.random() < 0.5:
        for place in order[1:]:
            text += rng.choice(t.QUESTIONS).format(O=things[place])
            extra.append(len(text))
            text += f" {colours[place]}."
    else:
        text += t.SUMMARY_OPENING
        for place in rng.sample(range(3), 3):
            text += t.SUMMARY_ITEM.format(O=things[place], C=colours[place])
            extra.append(len(text) - len(colours[place]) - 2)
        text = text.removesuffix(",") + "."
    answer = " " + colours[order[0]]
    wrong = tuple(" " + colours[place] for place in order[1:])
    template = scene * len(t.QUESTIONS) + question
    tail = text[len(prompt) + len(answer) :]
    return Example(prompt, answer, wrong, "coloured-objects", template, context, tail, tuple(extra))


def inventory(rng: random.Random) -> Document:
    """Five to eight coloured things, then each of them again with its colour behind it."""
    count = rng.randint(5, 8)
    things, colours = rng.sample(w.THINGS, count), rng.sample(w.COLOURS, count)
    text = t.INVENTORY.format(SURFACE=rng.choice(w.SURFACES))
    for thing, colour in zip(things, colours, strict=True):
        text += t.INVENTORY_ITEM.format(C=colour, O=thing)
    text = key = text.removesuffix(",") + "."
    text += t.SUMMARY_OPENING
    answers = []
    for place in rng.sample(range(count), count):
        text += t.SUMMARY_ITEM.format(O=things[place], C=colours[place])
        answers.append(len(text) - len(colours[place]) - 2)
    return Document(text.removesuffix(",") + ".", tuple(answers), "coloured-objects", key)
