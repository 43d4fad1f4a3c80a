"""Filling templates from a seed: which values a slot may take with a tokenizer, and which pairs are drawn."""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Iterable, Iterator, Mapping

from circuitfind.errors import PromptError
from circuitfind.task.align import Aligner, Encoded, PairProblem, RawPair, tokens_of
from circuitfind.task.checks import number_of
from circuitfind.task.parts import SetRule, TemplateAnswer, TemplatePair
from circuitfind.task.spec import TaskSpec
from circuitfind.task.templates import Filled, Span, Template, parse_template, split_row

STUCK = 200
"""After so many draws in a row that brought nothing new, the rest is listed instead of drawn."""

LISTABLE = 200_000
"""Most combinations of values that are gone through one by one."""

_COMPARE = {"above": operator.gt, "below": operator.lt, "at-least": operator.ge, "up-to": operator.le}

Values = dict[str, str]


class Drawer:
    """Draws pairs from the templates of a task.

    Raises:
        PromptError: a slot has no value that the tokenizer keeps whole, or too few for ``distinct``.
    """

    def __init__(self, spec: TaskSpec, aligner: Aligner, counterfactual: str) -> None:
        templates = spec.prompts.templates
        assert templates is not None, "only called for tasks with templates"
        self._spec = spec
        self._aligner = aligner
        self._templates = templates
        self._counterfactual = counterfactual
        self._rules = spec.prompts.slot_rules
        self._distinct = spec.prompts.distinct
        self._left_out: dict[str, dict[str, None]] = {}
        self._whole: dict[tuple[Template, tuple[str, ...]], bool] = {}
        self._prompts = [_parse(_prompt_texts(template)) for template in templates]
        self._answers = [_parse(_answer_texts(template)) for template in templates]
        self._used = self._used_slots()
        self._values = {slot: self._kept(slot) for slot in self._used if slot in self._rules}
        self._rows = self._kept_rows()
        self._n_rows = max((split_row(slot)[1] for slot in self._used if slot not in self._rules), default=0)
        self._enough()

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Values that were left out so far, by slot."""
        return {slot: tuple(values) for slot, values in self._left_out.items() if values}

    def draw(self, count: int, seed: int) -> list[RawPair]:
        """Up to ``count`` different pairs; fewer only if there are no more (or none is met in many draws)."""
        # A text seeds the generator through SHA-512, so the draws are the same on every platform.
        rng = random.Random(f"{self._spec.name}:{seed}")
        weights = [template.weight for template in self._templates]
        found: list[RawPair] = []
        seen: set[object] = set()
        misses = 0
        while len(found) < count and misses < STUCK:
            number = rng.choices(range(len(self._templates)), weights)[0]
            misses = 0 if self._add(found, seen, number, self._draw_values(rng)) else misses + 1
        if len(found) < count and self._combinations() * len(self._templates) <= LISTABLE:
            for values in self._list_values():
                for number in range(len(self._templates)):
                    if len(found) < count:
                        self._add(found, seen, number, values)
        return found

    def _add(self, found: list[RawPair], seen: set[object], number: int, values: Values | None) -> bool:
        """Add the pair that a template makes of ``values``, unless it is unfit or was there before.

        It must be new under every counterfactual, so that all of them are drawn with the same clean prompts.
        """
        if values is None or not self._fits(number, values):
            return False
        template = self._templates[number]
        answer, wrong = (self._answer(rule, values) for rule in (template.answer, template.wrong))
        if not answer or not wrong:
            return False  # nothing lies above the greatest number: such a pair has no answer
        clean = parse_template(template.clean).fill(values)
        corrupted = {
            name: parse_template(text).fill(values) for name, text in template.counterfactuals.items()
        }
        keys = {(name, clean.text, filled.text, answer, wrong) for name, filled in corrupted.items()}
        if keys & seen:
            return False
        seen |= keys
        place = self._spec.place("prompts", "templates", number)
        where = f"{place}, template {number + 1}, pair {len(found) + 1}"
        group = template.name or str(number + 1)
        found.append(RawPair(clean, corrupted[self._counterfactual], answer, wrong, where, group))
        return True

    # What a slot may hold.

    def _used_slots(self) -> list[str]:
        """Slots that stand somewhere in a template or a comparison, in the order of the file."""
        texts = itertools.chain.from_iterable(self._prompts + self._answers)
        used = {slot for template in texts for slot in template.slots}
        for template in self._templates:
            for rule in (template.answer, template.wrong):
                used |= set(rule.bounds.values()) if isinstance(rule, SetRule) else set()
        in_rows = sorted(slot for slot in used if slot not in self._rules)
        return [slot for slot in self._rules if slot in used] + in_rows

    def _places(self, slot: str) -> list[Template]:
        """The chunks in which a slot stands alone, and the answers that it makes up."""
        found = [
            chunk
            for template in itertools.chain.from_iterable(self._prompts)
            for chunk in template.chunks()
            if set(chunk.slots) == {slot}
        ]
        found += [t for t in itertools.chain.from_iterable(self._answers) if set(t.slots) == {slot}]
        return list(dict.fromkeys(found))

    def _kept(self, slot: str) -> tuple[str, ...]:
        rule = self._rules[slot]
        kept = rule.values if rule.tokens == "any" else self._whole_values(slot, rule.values, slot)
        if not kept:
            raise PromptError(
                f"the tokenizer splits every value of slot {slot} ({', '.join(rule.values[:5])})",
                hint="list words that are one token with the blank before them, or say 'tokens: any'",
                where=self._spec.where("prompts", "slots", slot),
            )
        return kept

    def _whole_values(self, slot: str, values: Iterable[str], listed_as: str) -> tuple[str, ...]:
        places = self._places(slot)
        kept = []
        for value in dict.fromkeys(values):
            if all(self._is_whole(place, {slot: value}) for place in places):
                kept.append(value)
            else:
                self._left_out.setdefault(listed_as, {})[value] = None
        return tuple(kept)

    def _kept_rows(self) -> tuple[Mapping[str, str], ...]:
        rule = self._spec.prompts.row_rule
        in_rows = [slot for slot in self._used if slot not in self._rules]
        if rule is None or not in_rows:
            return ()
        kept = list(rule.values)
        for slot in in_rows if rule.tokens == "one" else ():
            key = split_row(slot)[0]
            whole = set(self._whole_values(slot, (row[key] for row in rule.values), key))
            kept = [row for row in kept if row[key] in whole]
        return tuple(kept)

    def _is_whole(self, place: Template, values: Mapping[str, str]) -> bool:
        """Whether each slot of a chunk (or an answer) is exactly one token of it."""
        key = (place, tuple(values[slot] for slot in place.slots))
        if key not in self._whole:
            filled = place.fill(values)
            try:
                encoded = self._aligner.encode(filled.text)
            except PairProblem:
                # Not in the vocab. Only a value's own fault is held against it; that of the words around it
                # is told by the pair.
                self._whole[key] = all(self._encodes(value) for value in key[1])
            else:
                self._whole[key] = all(_is_one(encoded, filled, span) for span in filled.spans)
        return self._whole[key]

    def _encodes(self, text: str) -> bool:
        try:
            return bool(self._aligner.encode(text))
        except PairProblem:
            return False

    def _fits(self, number: int, values: Values) -> bool:
        """Whether slots that touch each other are one token each, with these values."""
        for template in self._prompts[number]:
            for chunk in template.chunks():
                slots = tuple(dict.fromkeys(chunk.slots))
                strict = [
                    slot for slot in slots if slot not in self._rules or self._rules[slot].tokens == "one"
                ]
                if len(slots) > 1 and strict and not self._is_whole(chunk, values):
                    word = "+".join(values[slot] for slot in slots)
                    self._left_out.setdefault("+".join(slots), {})[word] = None
                    return False
        return True

    def _enough(self) -> None:
        if len(self._rows) < self._n_rows:
            rule = self._spec.prompts.row_rule
            total = len(rule.values) if rule else 0
            raise PromptError(
                f"a pair needs {self._n_rows} rows, but {len(self._rows)} of {total} are left",
                hint="rows with a value that the tokenizer splits are left out: add rows of single tokens, "
                "or say 'rows: {values: [...], tokens: any}'",
                where=self._spec.where("prompts", "rows"),
            )
        for number, group in enumerate(self._distinct):
            own = [slot for slot in group if slot in self._values]
            values = {value for slot in own for value in self._values[slot]}
            if len(values) < len(own):
                raise PromptError(
                    f"slots {', '.join(own)} must differ, but only {len(values)} values are left for them",
                    hint="list more values that are one token each, or use fewer slots",
                    where=self._spec.where("prompts", "distinct", number),
                )

    # Which values a pair takes.

    def _draw_values(self, rng: random.Random) -> Values | None:
        values: Values = {}
        for slot, choices in self._values.items():
            taken = {
                values[other]
                for group in self._distinct
                if slot in group
                for other in group
                if other in values
            }
            free = [value for value in choices if value not in taken] if taken else choices
            if not free:
                return None
            values[slot] = rng.choice(free)
        rows = rng.sample(range(len(self._rows)), self._n_rows)
        return self._with_rows(values, [self._rows[row] for row in rows])

    def _list_values(self) -> Iterator[Values]:
        for words in itertools.product(*self._values.values()):
            for rows in itertools.permutations(self._rows, self._n_rows):
                values = self._with_rows(dict(zip(self._values, words, strict=True)), rows)
                if values is not None:
                    yield values

    def _combinations(self) -> int:
        return math.prod(len(v) for v in self._values.values()) * math.perm(len(self._rows), self._n_rows)

    def _with_rows(self, values: Values, rows: Iterable[Mapping[str, str]]) -> Values | None:
        """Adds the rows' values under ``KEY`` and ``KEY.2``; None if slots that must differ do not."""
        for number, row in enumerate(rows, 1):
            values |= {f"{key}.{number}": value for key, value in row.items()}
            values |= row if number == 1 else {}
        for group in self._distinct:
            given = [values[slot] for slot in group if slot in values]
            if len(set(given)) < len(given):
                return None
        return values

    def _answer(self, answer: TemplateAnswer, values: Values) -> tuple[str, ...]:
        if isinstance(answer, str):
            return (parse_template(answer).fill(values).text,)
        if not isinstance(answer, SetRule):
            return tuple(dict.fromkeys(parse_template(text).fill(values).text for text in answer))
        return tuple(word for word in self._listed(answer.source) if _picked(word, answer, values))

    def _listed(self, slot: str) -> tuple[str, ...]:
        """The values of a slot that a rule picks from: those that are one token as an answer."""
        rule = self._rules[slot]
        if rule.tokens == "any":
            return rule.values
        alone = Template(("", ""), (slot,))
        kept = []
        for value in rule.values:
            if self._is_whole(alone, {slot: value}):
                kept.append(value)
            else:
                self._left_out.setdefault(slot, {})[value] = None
        return tuple(kept)


def _is_one(encoded: Encoded, filled: Filled, span: Span) -> bool:
    """Whether the value at ``span`` is one token, with nothing but blanks beside it."""
    try:
        first, last = tokens_of(encoded, span)
    except PairProblem:
        return False
    _, start, end = encoded[first]
    return first == last and filled.text[start:end].strip() == filled.text[span.start : span.end].strip()


def _picked(word: str, rule: SetRule, values: Values) -> bool:
    for bound, slot in rule.bounds.items():
        if bound == "other-than":
            if word.strip() == values[slot].strip():
                return False
            continue
        number, limit = number_of(word), number_of(values[slot])
        if number is None or limit is None or not _COMPARE[bound](number, limit):
            return False
    return True


def _prompt_texts(template: TemplatePair) -> list[str]:
    return [template.clean, *template.counterfactuals.values()]


def _answer_texts(template: TemplatePair) -> list[str]:
    texts: list[str] = []
    for answer in (template.answer, template.wrong):
        if isinstance(answer, str):
            texts.append(answer)
        elif not isinstance(answer, SetRule):
            texts.extend(answer)
    return texts


def _parse(texts: Iterable[str]) -> list[Template]:
    return [parse_template(text) for text in texts]
