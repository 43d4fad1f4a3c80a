"""What is wrong, or weak, with prompt pairs that line up: read from tokens alone, without running a model.

A pair is good when its two prompts differ in one thing, when that thing can reach the answer, and when the answer can be told
from nothing else. None of this is an error: a task may change two things on purpose. ``warning`` is for what makes results
mean something else than they seem to, ``note`` for what a writer of prompts should know.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher

from circuitfind.task.balance import judge_balance
from circuitfind.task.differences import Advice, Show, about, difference, of_pairs
from circuitfind.task.pairs import PromptPairs
from circuitfind.task.spec import TaskSpec
from circuitfind.task.templates import parse_template


def advise(spec: TaskSpec, pairs: PromptPairs, show: Show, *, causal: bool = True) -> list[Advice]:
    """Everything that tokens say, the gravest first.

    Args:
        spec: The task.
        pairs: Its pairs.
        show: The text of a token.
        causal: Whether a token sees only those before it.
    """
    told = [
        *_dropped(pairs),
        *_changes(pairs),
        *_beyond_slots(spec, pairs.counterfactual),
        *(_unreachable(pairs) if causal else ()),
        *_same_answer(pairs),
        *_duplicates(pairs),
        *judge_balance(pairs, show, wordings(spec)),
        *_left_out(pairs),
    ]
    return sorted(told, key=lambda one: one.level != "warning")


def _dropped(pairs: PromptPairs) -> Iterator[Advice]:
    """Pairs that do not line up, by kind of reason."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(pairs.dropped):
        kind = (
            "answer-tokens"
            if "answer" in one.reason and "tokens:" in one.reason
            else "lengths"
            if "tokens, the corrupted one" in one.reason
            else "unaligned"
        )
        kinds[kind].append(i)
    hints = {
        "answer-tokens": "give answers that are one token, with their leading blank",
        "lengths": "replace words by words of as many tokens: `circuitfind prompts suggest` finds some",
        "unaligned": "mend the pair; discover refuses it, or leaves it out with --drop-bad-pairs",
    }
    total = len(pairs) + len(pairs.dropped)
    for kind, which in kinds.items():
        first = pairs.dropped[which[0]]
        what = f"{len(which)} of {total} pairs cannot be used: {first.reason}"
        where = tuple(dict.fromkeys(pairs.dropped[i].where for i in which[:5]))
        yield Advice("warning", kind, what, hints[kind], where)


def _changes(pairs: PromptPairs) -> Iterator[Advice]:
    several: list[int] = []
    repeated: list[int] = []
    for i, pair in enumerate(pairs):
        found = difference(pair)
        if len(found.spans) > 1:
            (repeated if found.one_word else several).append(i)
    if several:
        most = max(len(difference(pairs[i]).spans) for i in several)
        yield about(
            "warning",
            "several-changes",
            f"the counterfactual changes more than one thing in {of_pairs(several, pairs)} (up to {most} stretches of tokens): "
            "what a patch shows may be of any of them",
            "change one word, or keep a second counterfactual that does, and compare the two",
            pairs,
            several,
        )
    if repeated:
        yield about(
            "note",
            "repeated-change",
            f"the counterfactual changes one word in several places in {of_pairs(repeated, pairs)}",
            "fine, if the word is one thing; patch by position (--positions named) to tell its places apart",
            pairs,
            repeated,
        )


def _beyond_slots(spec: TaskSpec, counterfactual: str) -> Iterator[Advice]:
    """Templates whose fixed words change; a slot that a fixed word replaces is a slot that changes."""
    which = []
    for number, template in enumerate(spec.prompts.templates or ()):
        one, other = (_words(text) for text in (template.clean, template.counterfactuals[counterfactual]))
        if _fixed_words_change(one, other):
            which.append(number)
    if which:
        names = ", ".join(str(number + 1) for number in which)
        yield Advice(
            "warning",
            "change-outside-slots",
            f"the counterfactual changes fixed words of template {names}",
            "put what changes into a slot, so that all else is the same by construction",
            tuple(spec.place("prompts", "templates", number, "corrupted") for number in which[:5]),
        )


def _fixed_words_change(one: list[str], other: list[str]) -> bool:
    """Whether two lists of words and slots differ in a word that no slot takes the place of."""
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        cells = (
            [one[a:b] + other[c:d]]
            if b - a != d - c
            else [[x, y] for x, y in zip(one[a:b], other[c:d], strict=True)]
        )
        if kind != "equal" and any(cell[0] != cell[-1] and "{" not in "".join(cell) for cell in cells):
            return True
    return False


def _words(text: str) -> list[str]:
    """Fixed words and slots, one by one; a slot is told by its brace."""
    parsed = parse_template(text)
    found = parsed.literals[0].split()
    for slot, literal in zip(parsed.slots, parsed.literals[1:], strict=True):
        found += [f"{{{slot}}}", *literal.split()]
    return found


def wordings(spec: TaskSpec) -> dict[str, tuple[str, ...]]:
    """The fixed words of each template by its name in pairs: templates that differ in their slots alone read alike."""
    return {
        template.name or str(number): parse_template(template.clean).literals
        for number, template in enumerate(spec.prompts.templates or (), 1)
    }


def _unreachable(pairs: PromptPairs) -> Iterator[Advice]:
    behind, late = [], defaultdict(list)
    for i, pair in enumerate(pairs):
        first = difference(pair).positions[0]
        if first > pair.answer_position:
            behind.append(i)
        for name, at in pair.positions.items():
            if at < first:
                late[name].append(i)
    if behind:
        yield about(
            "warning",
            "unreachable",
            f"every difference lies behind the answer position in {of_pairs(behind, pairs)}: it cannot reach the answer",
            "change something before the answer position, or set answer-position",
            pairs,
            behind,
        )
    never = [name for name, which in late.items() if len(which) == len(pairs)]
    if never:
        yield Advice(
            "note",
            "positions-before-the-change",
            f"nothing differs yet at {', '.join(never)}: the change comes behind, and a causal model cannot carry it back",
            "resample patching there does nothing with this counterfactual; change an earlier word to study these positions",
        )


def _same_answer(pairs: PromptPairs) -> Iterator[Advice]:
    """Corrupted prompts that stand elsewhere as clean ones, with an answer that is right there too."""
    answers: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for pair in pairs:
        answers[pair.clean].update(pair.answer)
    which = [i for i, pair in enumerate(pairs) if answers.get(pair.corrupted, set()) & set(pair.answer)]
    if which:
        yield about(
            "warning",
            "same-answer",
            f"the corrupted prompt has the clean one's answer in {of_pairs(which, pairs)}: patching may change nothing",
            "corrupt what the answer depends on",
            pairs,
            which,
        )


def _duplicates(pairs: PromptPairs) -> Iterator[Advice]:
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    again = []
    for i, pair in enumerate(pairs):
        if seen.setdefault((pair.clean, pair.corrupted), i) != i:
            again.append(i)
    if again:
        yield about(
            "warning",
            "duplicates",
            f"{of_pairs(again, pairs)} stand here twice: intervals take them for prompts of their own",
            "list each pair once",
            pairs,
            again,
        )


def _left_out(pairs: PromptPairs) -> Iterator[Advice]:
    for slot, values in pairs.left_out.items():
        words = ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
        yield Advice(
            "note",
            "values-left-out",
            f"{len(values)} values of {slot} are not one token here and are left out: {words}",
            "list others, or say 'tokens: any' for the slot",
        )
    made = len(pairs) + len(pairs.dropped)
    if pairs.asked is not None and made < pairs.asked:
        yield Advice(
            "note",
            "fewer-pairs",
            f"{pairs.asked} pairs asked for, only {made} different ones found",
            "list more values",
        )
