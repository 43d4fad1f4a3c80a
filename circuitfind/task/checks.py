"""What must hold between the parts of a task: slots that exist, positions that every template has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from circuitfind.errors import did_you_mean
from circuitfind.task.parts import Position, Prompts, SetRule, SlotPosition, TemplatePair
from circuitfind.task.templates import parse_template, split_row

END = "END"
"""The last token of a prompt; defined in every task."""

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """Something wrong at ``path`` (keys as in the file), with what to do about it."""

    path: Path
    what: str
    hint: str


def find_problems(
    prompts: Prompts, positions: Mapping[str, Position], answer_position: str | int
) -> tuple[Problem, ...]:
    """Everything wrong between the parts, in the order of the file."""
    return tuple(_find(prompts, positions, answer_position))


def _find(
    prompts: Prompts, positions: Mapping[str, Position], answer_position: str | int
) -> Iterator[Problem]:
    yield from _counterfactual_names(prompts)
    if prompts.templates is not None:
        yield from _slots(prompts)
        bad = False
        for number, template in enumerate(prompts.templates):
            for problem in _template(prompts, template, ("prompts", "templates", number)):
                bad = True
                yield problem
        yield from _distinct(prompts)
        if not bad:
            yield from _slot_positions(prompts.templates, positions)
    else:
        for name, position in positions.items():
            if isinstance(position, SlotPosition):
                yield Problem(
                    ("positions", name),
                    "names a slot, and only templates have slots",
                    "give an index (-1 is the last token) or {token: ...}",
                )
    # A model of the zoo names positions itself.
    names = {END, *positions}
    if prompts.zoo is None and isinstance(answer_position, str) and answer_position not in names:
        yield Problem(
            ("answer-position",),
            f"no position is named '{answer_position}'",
            did_you_mean(answer_position, names),
        )


def _counterfactual_names(prompts: Prompts) -> Iterator[Problem]:
    kind = prompts.kind
    items = prompts.templates or prompts.pairs or ()
    names = [tuple(item.counterfactuals) for item in items]
    for number, own in enumerate(names):
        if set(own) != set(names[0]):
            yield Problem(
                ("prompts", kind, number, "corrupted"),
                f"has the counterfactuals {', '.join(own)}, but the first has {', '.join(names[0])}",
                f"give the same names to all {kind}",
            )


def _known_slots(prompts: Prompts) -> set[str]:
    rule = prompts.row_rule
    return set(prompts.slots) | (set(rule.values[0]) if rule else set())


def _slots(prompts: Prompts) -> Iterator[Problem]:
    for name, slot in prompts.slot_rules.items():
        again = sorted({value for value in slot.values if slot.values.count(value) > 1})
        if again:
            yield Problem(
                ("prompts", "slots", name), f"lists {_words(again)} more than once", "list each value once"
            )
    rule = prompts.row_rule
    if rule is None:
        return
    keys = set(rule.values[0])
    for number, row in enumerate(rule.values):
        path: Path = ("prompts", "rows", number)
        if set(row) != keys:
            yield Problem(
                path,
                f"has the keys {', '.join(row)}, but the first row has {', '.join(rule.values[0])}",
                "give every row the same keys",
            )
        elif row in rule.values[:number]:
            yield Problem(path, "is the same as an earlier row", "list each row once")
    for name in sorted(keys & set(prompts.slots)):
        yield Problem(("prompts", "slots", name), "is also a key of 'rows'", "rename one of them")


def _template(prompts: Prompts, template: TemplatePair, path: Path) -> Iterator[Problem]:
    texts: dict[Path, str] = {("clean",): template.clean}
    if isinstance(template.corrupted, dict):
        texts |= {("corrupted", name): text for name, text in template.corrupted.items()}
    else:
        texts["corrupted",] = template.corrupted
    for key, answer in (("answer", template.answer), ("wrong", template.wrong)):
        if isinstance(answer, SetRule):
            yield from _rule(prompts, answer, (*path, key))
        elif isinstance(answer, str):
            texts[key,] = answer
        else:
            texts |= {(key, number): text for number, text in enumerate(answer)}
    for key_path, text in texts.items():
        try:
            parsed = parse_template(text)
        except ValueError as error:
            yield Problem(
                (*path, *key_path),
                str(error),
                "slots are written {NAME} (letters, digits, _); write {{ or }} for a plain brace",
            )
            continue
        for slot in dict.fromkeys(parsed.slots):
            yield from _slot(prompts, slot, (*path, *key_path))


def _slot(prompts: Prompts, slot: str, path: Path) -> Iterator[Problem]:
    key, row = split_row(slot)
    known = _known_slots(prompts)
    if key not in known:
        hint = did_you_mean(key, known) if known else "list its values under prompts.slots"
        yield Problem(path, f"no slot is named '{key}'", hint)
    elif "." in slot and key in prompts.slots:
        yield Problem(
            path,
            f"'{slot}' asks for a row, and '{key}' is no key of 'rows'",
            f"for another value of the same list define another slot: {key}{row}: *{key.lower()}",
        )


def _rule(prompts: Prompts, rule: SetRule, path: Path) -> Iterator[Problem]:
    slots = prompts.slot_rules
    if rule.source not in slots:
        yield Problem((*path, "from"), f"no slot is named '{rule.source}'", did_you_mean(rule.source, slots))
        return
    for bound, slot in rule.bounds.items():
        problems = list(_slot(prompts, slot, (*path, bound)))
        yield from problems
        if problems or bound == "other-than":
            continue
        table = prompts.row_rule
        values = (
            slots[slot].values if slot in slots else tuple(row[slot] for row in table.values) if table else ()
        )
        for name, listed in ((rule.source, slots[rule.source].values), (slot, values)):
            words = [value for value in listed if number_of(value) is None]
            if words:
                yield Problem(
                    (*path, bound),
                    f"compares numbers, and '{name}' has {_words(words)}",
                    "only lists of numbers can be compared",
                )


def number_of(text: str) -> float | None:
    """The number that ``text`` spells, blanks around it allowed, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def _distinct(prompts: Prompts) -> Iterator[Problem]:
    for number, group in enumerate(prompts.distinct):
        path: Path = ("prompts", "distinct", number)
        if len(set(group)) < len(group):
            yield Problem(path, "names a slot twice", "name each slot once")
        for slot in group:
            yield from _slot(prompts, slot, path)


def _slot_positions(
    templates: tuple[TemplatePair, ...], positions: Mapping[str, Position]
) -> Iterator[Problem]:
    for name, position in positions.items():
        if not isinstance(position, SlotPosition):
            continue
        for number, template in enumerate(templates, 1):
            slots = parse_template(template.clean).slots
            times = slots.count(position.slot)
            if times >= position.occurrence:
                continue
            has = (
                f"has the slot '{position.slot}' {times} times" if times else f"has no slot '{position.slot}'"
            )
            hint = (
                f"occurrence counts from 1 to {times}" if times else did_you_mean(position.slot, set(slots))
            )
            yield Problem(("positions", name), f"the clean prompt of template {number} {has}", hint)
            break


def _words(words: list[str]) -> str:
    shown = ", ".join(f"'{word}'" for word in words[:5])
    return shown + (f" and {len(words) - 5} more" if len(words) > 5 else "")
