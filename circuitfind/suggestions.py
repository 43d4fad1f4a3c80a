"""Prompts with a word to change, the words that fit, and the task of symmetric pairs that they give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitfind.errors import UsageError, did_you_mean
from circuitfind.output.files import check_new, write_atomic
from circuitfind.output.store import slug
from circuitfind.task.pairs import Tokenizer
from circuitfind.task.spec import SUFFIXES, TaskSpec, load_task
from circuitfind.task.suggest import Candidate, Occurrence, Spot, chosen_places, find_spot


@dataclass(frozen=True)
class Prompt:
    """A prompt with the word that is to be changed.

    Attributes:
        spot: The prompt.
        answer, wrong: As texts, where they are known.
        values: Words of the task's slot.
        where: The line of a task's template.
    """

    spot: Spot
    answer: str | None = None
    wrong: str | None = None
    values: tuple[str, ...] = ()
    where: str | None = None


@dataclass(frozen=True)
class Suggestion:
    """A word that fits, and what it does.

    Attributes:
        candidate: The word.
        log_prob: Of the word in its place, after what stands before it; None where nothing does, or no model is run.
        says: What the model says next.
        wrong: What is held against the answer: what the model says of the corrupted prompt, or what was given.
        clean, corrupted: Logit of the answer minus that of ``wrong``.
    """

    candidate: Candidate
    log_prob: float | None = None
    says: str | None = None
    wrong: str | None = None
    clean: float | None = None
    corrupted: float | None = None

    @property
    def turns(self) -> bool | None:
        """Whether it turns the answer round; None where no model is run."""
        return None if self.clean is None or self.corrupted is None else self.clean > 0 > self.corrupted

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.candidate
        return {
            "word": c.word,
            "from": c.source,
            "tokens": len(c.own),
            "text": c.text,
            "log_prob": self.log_prob,
            "says": self.says,
            "wrong": self.wrong,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "turns": self.turns,
        }


@dataclass(frozen=True)
class Suggested:
    """Suggestions for one prompt, the best first.

    Attributes:
        prompt: The prompt.
        tokens: Of its word.
        log_prob: Of its word.
        answer: What is right: as given, or what the model says.
        found: The suggestions.
        refused: Words that would have changed the length or other tokens.
    """

    prompt: Prompt
    tokens: int
    log_prob: float | None
    answer: str | None
    found: tuple[Suggestion, ...]
    refused: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "text": self.prompt.spot.text,
            "change": self.prompt.spot.word,
            "places": [list(place) for place in self.prompt.spot.places],
            "tokens": self.tokens,
            "log_prob": self.log_prob,
            "answer": self.answer,
            "where": self.prompt.where,
            "refused": self.refused,
            "suggestions": [one.as_dict() for one in self.found],
        }


# Prompts: of a text, or of a task.


def of_text(
    text: str, change: str | None, occurrence: Occurrence, answer: str | None, wrong: str | None
) -> list[Prompt]:
    """One prompt that was written out."""
    return [Prompt(find_spot(text, change, occurrence), answer, wrong)]


def of_task(
    spec: TaskSpec,
    tokenizer: Tokenizer,
    change: str | None,
    occurrence: Occurrence,
    count: int,
    seed: int | None,
) -> list[Prompt]:
    """Prompts that are drawn of a task's templates, with a slot whose value is to be changed.

    Raises:
        UsageError: The task has no templates, or none with such a slot.
    """
    from circuitfind.task.align import Aligner
    from circuitfind.task.draw import Drawer

    if spec.prompts.templates is None:
        raise UsageError(
            f"the prompts of {spec.name} are no templates with slots",
            where=spec.where("prompts"),
            hint="give a prompt as text: circuitfind prompts suggest 'The {cat} sat on the'",
        )
    aligner = Aligner(tokenizer, None, {}, "END")
    drawn = Drawer(spec, aligner, spec.counterfactuals[0]).draw(count, spec.seed if seed is None else seed)
    known = {span.slot for raw in drawn if not isinstance(raw.clean, tuple) for span in raw.clean.spans}
    if change is None or change not in known:
        told = (
            f"'{change}' is no slot of its clean prompts"
            if change is not None
            else "nothing says which slot to change"
        )
        near = (
            did_you_mean(change, known)
            if change is not None
            else f"--change takes one of {', '.join(sorted(known))}"
        )
        raise UsageError(f"{spec.name}: {told}", hint=near, where=spec.where("prompts", "templates"))
    found = []
    for raw in drawn:
        assert not isinstance(raw.clean, tuple)
        spans = [(s.start, s.end) for s in raw.clean.spans if s.slot == change]
        if not spans or (isinstance(occurrence, int) and occurrence > len(spans)):
            continue
        start, end = spans[0]
        word = raw.clean.text[start:end]
        spot = Spot(raw.clean.text, word, chosen_places(spans, occurrence, word), len(spans))
        answers = [
            one[0] if len(one) == 1 and isinstance(one[0], str) else None for one in (raw.answer, raw.wrong)
        ]
        rule = spec.prompts.slot_rules.get(change)
        values = rule.values if rule is not None else _column(spec, change)
        found.append(Prompt(spot, answers[0], None, values, raw.where))
    if not found:
        raise UsageError(f"slot {change} stands nowhere {occurrence} times", hint="leave out --occurrence")
    return found


def _column(spec: TaskSpec, slot: str) -> tuple[str, ...]:
    table = spec.prompts.row_rule
    key = slot.partition(".")[0]
    return () if table is None else tuple(row[key] for row in table.values if key in row)


# The task that they give.


def check_path(path: Path, *, force: bool) -> None:
    """Refuse a file that a task cannot be written to.

    Raises:
        UsageError: Its name is that of no task, or it is there.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"'{path}' is no name of a task file", hint=f"write {path.with_suffix('.yaml')}")
    check_new(path, force=force)


def as_task(
    suggested: Sequence[Suggested],
    *,
    path: Path,
    model: str,
    each: int,
    wrong: str | None = None,
    force: bool = False,
) -> tuple[Path, int]:
    """Write a task of symmetric pairs: each clean prompt with its replacements, and each the other way round.

    Args:
        suggested: What was found.
        path: The file.
        model: Default model of the task.
        each: Replacements of each prompt at the most.
        wrong: The answer to corrupted prompts, where no model says it.
        force: Write over a file that is there.

    Raises:
        UsageError: The file is there, no replacement turns the answer round, or no answer is known.
    """
    check_path(path, force=force)
    pairs: list[Mapping[str, str]] = []
    for i, one in enumerate(suggested, 1):
        good = [s for s in one.found if s.turns is not False][:each]
        for s in good:
            other = s.wrong or wrong
            if one.answer is None or other is None:
                raise UsageError(
                    "a task needs the answers to both prompts, and no model was run that says them",
                    hint="give --answer and --wrong, or a --model that runs",
                )
            if one.answer == other:
                continue
            pair = {
                "clean": one.prompt.spot.text,
                "corrupted": s.candidate.text,
                "answer": one.answer,
                "wrong": other,
            }
            pairs.append({**pair, "group": f"prompt {i}"})
            swapped = {
                "clean": pair["corrupted"],
                "corrupted": pair["clean"],
                "answer": other,
                "wrong": one.answer,
            }
            pairs.append({**swapped, "group": f"prompt {i}"})
    kept = list({(p["clean"], p["corrupted"]): p for p in pairs}.values())
    if not kept:
        raise UsageError(
            "no replacement turns the answer round, so there is no pair to write",
            hint="change another word, give --answer and --wrong, or more words (--words FILE, --from model)",
        )
    words = ", ".join(dict.fromkeys(one.prompt.spot.word for one in suggested))
    name = "-".join(
        part for part in slug(path.stem).lower().replace("_", "-").replace(".", "-").split("-") if part
    )
    lines = [
        "# Symmetric token replacements, each pair both ways round. Look at it: circuitfind prompts check FILE",
        "",
        f"name: {name}",
        f"description: {_quoted(f'What changes when one word does: {words[:80]}')}",
        f"model: {_quoted(model)}",
        "",
        "prompts:",
        "  pairs:",
    ]
    for p in kept:
        for i, (key, value) in enumerate(p.items()):
            lines.append(f"    {'- ' if not i else '  '}{key}: {_quoted(value)}")
    write_atomic(path, "\n".join(lines) + "\n")
    load_task(path)
    return path, len(kept)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def best(suggested: Sequence[Suggested], count: int) -> list[Suggested]:
    """The first few suggestions of each prompt."""
    return [replace(one, found=one.found[:count]) for one in suggested]
