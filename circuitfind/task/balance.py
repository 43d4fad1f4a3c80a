"""Whether the answers of prompt pairs can be told from anything but the behaviour: counts, templates, endings, order."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from circuitfind.task.differences import Advice, Show, difference
from circuitfind.task.pairs import PromptPair, PromptPairs

MANY = 8
"""Pairs from which on shares of them are judged."""
OFTEN = 0.9
"""Share of pairs above which something holds for nearly all."""


def judge_balance(
    pairs: PromptPairs, show: Show, wordings: Mapping[str, tuple[str, ...]]
) -> Iterator[Advice]:
    """What makes the answer guessable, or the pairs fewer than they look.

    Args:
        pairs: The pairs.
        show: The text of a token.
        wordings: What pairs of a group have in common, by group, where groups may read alike.
    """
    yield from _balance(pairs, show, wordings)
    yield from _templates(pairs)
    yield from _last_tokens(pairs)
    yield from _places(pairs, show)


def _balance(pairs: PromptPairs, show: Show, wordings: Mapping[str, tuple[str, ...]]) -> Iterator[Advice]:
    if len(pairs) < MANY:
        yield Advice(
            "note",
            "few-pairs",
            f"there are only {len(pairs)} pairs",
            "intervals over so few prompts are wide: write more",
        )
        return
    counts = Counter(pair.answer for pair in pairs)
    (commonest, times), *_ = counts.most_common(1)
    shown = "|".join(show(token) for token in commonest[:3])
    if len(counts) == 1:
        yield Advice(
            "warning",
            "one-answer",
            f"the answer is always '{shown}': a circuit that raises it whatever stands in the prompt looks perfect",
            "vary the answer",
        )
    elif times > 0.2 * len(pairs) and times > _beyond_chance(len(pairs), 1 / len(counts)):
        yield Advice(
            "warning",
            "unbalanced-answers",
            f"'{shown}' is the answer of {times} of {len(pairs)} pairs, of {len(counts)} answers",
            "use each answer about as often as the others",
        )
    both = Counter(pair.answer for pair in pairs) | Counter(pair.wrong for pair in pairs)
    never = [answer for answer in both if answer not in {pair.wrong for pair in pairs}]
    if len(never) == len(counts) and 1 < len(counts) <= len(pairs) / 2:
        yield Advice(
            "note",
            "answers-never-wrong",
            "no answer is ever the wrong one of another pair: a preference for some words looks like the behaviour",
            "let the same words be right in some pairs and wrong in others (`circuitfind prompts suggest` swaps them)",
        )
    said = guessed_by_wording(pairs, wordings)
    if said is not None and len(counts) > 1 and said[0] > OFTEN * said[1]:
        yield Advice(
            "warning",
            "answer-by-wording",
            f"the wording says which of the two answers is right in {said[0]} of {said[1]} pairs",
            "draw the words of every template from the same lists, so that either answer can be right",
        )


def _beyond_chance(count: int, share: float) -> float:
    """Three standard deviations above what a share of so many comes to by chance."""
    return count * share + 3 * math.sqrt(count * share * (1 - share))


def guessed_by_wording(pairs: PromptPairs, wordings: Mapping[str, tuple[str, ...]]) -> tuple[int, int] | None:
    """In how many pairs the wording alone says which of the two answers is right, and of how many.

    Told of wordings that have the same two answers in four pairs or more: of fewer, any rule fits. None where those are less
    than half of all pairs.
    """
    cells: dict[tuple[object, frozenset[object]], Counter[object]] = defaultdict(Counter)
    for pair in pairs:
        wording = wordings.get(pair.group, (pair.group,))
        cells[wording, frozenset((pair.answer, pair.wrong))][pair.answer] += 1
    told = [answers for answers in cells.values() if sum(answers.values()) >= 4]
    counted = sum(sum(answers.values()) for answers in told)
    return (sum(max(answers.values()) for answers in told), counted) if 2 * counted >= len(pairs) else None


def _templates(pairs: PromptPairs) -> Iterator[Advice]:
    if len(pairs) < MANY:
        return
    skeletons = {_skeleton(pair) for pair in pairs}
    groups = {pair.group for pair in pairs}
    if len(groups) == 1 and len(skeletons) < 3:
        yield Advice(
            "note",
            "few-templates",
            f"the prompts are of {len(skeletons)} wording{'s' if len(skeletons) > 1 else ''}: a circuit may be of the wording "
            "rather than of the behaviour",
            "write two or three templates more, with other words and another order",
        )


def _skeleton(pair: PromptPair) -> tuple[int, int]:
    """What tells wordings apart where pairs have no templates: length and where the prompts differ."""
    return len(pair.clean), difference(pair).positions[0]


def _last_tokens(pairs: PromptPairs) -> Iterator[Advice]:
    """Whether the last token or two, which the counterfactual leaves as they are, say the answer."""
    for width in (1, 2):
        ends: dict[tuple[int, ...], Counter[tuple[int, ...]]] = defaultdict(Counter)
        for pair in pairs:
            at = pair.answer_position + 1
            if at - width <= difference(pair).positions[-1]:
                continue  # what says the answer is what changes, as it should be
            ends[pair.clean[max(0, at - width) : at]][pair.answer] += 1
        common = [end for end, answers in ends.items() if sum(answers.values()) > 1]
        counted = sum(sum(ends[end].values()) for end in common)
        said = sum(max(ends[end].values()) for end in common)
        several = len({answer for end in common for answer in ends[end]}) > 1
        if (
            len(common) > 1
            and several
            and counted >= MANY
            and counted > len(pairs) / 2
            and said / counted > OFTEN
        ):
            word = "token" if width == 1 else f"{width} tokens"
            yield Advice(
                "warning",
                "answer-by-last-tokens",
                f"the last {word} say the answer in {said} of {counted} pairs: no context is needed",
                "end all prompts alike, or vary the answer behind each ending",
            )
            return


def _places(pairs: PromptPairs, show: Show) -> Iterator[Advice]:
    """Whether the answer always comes before, or behind, the wrong one."""
    order: list[int] = []
    for pair in pairs:
        words = [show(token).strip() for token in pair.clean]
        one, other = (
            _first(words, (show(t).strip() for t in tokens)) for tokens in (pair.answer, pair.wrong)
        )
        if one is not None and other is not None:
            order.append(one < other)
    if len(order) < MANY or len(order) < len(pairs) / 2:
        return
    before = sum(order) / len(order)
    if before > OFTEN or before < 1 - OFTEN:
        yield Advice(
            "warning",
            "answer-by-order",
            f"the answer stands {'before' if before > 0.5 else 'behind'} the wrong one in {max(before, 1 - before):.0%} of the "
            "prompts: a head that copies from a place looks like one that knows the answer",
            "write every template in both orders",
        )


def _first(words: Sequence[str], answers: Iterable[str]) -> int | None:
    """Where one of some answers first stands, with or without a blank before it."""
    wanted = set(answers)
    return next((at for at, word in enumerate(words) if word in wanted), None)
