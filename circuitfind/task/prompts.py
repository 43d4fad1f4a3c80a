"""From a task to prompt pairs: read or drawn, tokenised, and checked to line up pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from circuitfind.errors import PromptError, TaskError, did_you_mean
from circuitfind.task.align import Aligner, PairProblem, RawPair
from circuitfind.task.draw import Drawer
from circuitfind.task.files import read_pairs
from circuitfind.task.outside import named_file
from circuitfind.task.pairs import (
    Dropped,
    Padded,
    PromptPair,
    PromptPairs,
    Tokenizer,
    VocabTokenizer,
    pad,
)
from circuitfind.task.parts import DEFAULT_COUNTERFACTUAL
from circuitfind.task.rows import read_rows
from circuitfind.task.spec import TaskSpec
from circuitfind.task.templates import Filled

SHOWN = 5
"""How many bad pairs an error lists."""

Ids = int | Sequence[int]


@runtime_checkable
class ZooPair(Protocol):
    """What a model of the zoo gives for a pair."""

    @property
    def clean(self) -> Sequence[int]: ...
    @property
    def corrupted(self) -> Sequence[int]: ...
    @property
    def answer(self) -> Ids: ...
    @property
    def wrong(self) -> Ids: ...
    @property
    def positions(self) -> Mapping[str, int]: ...


def make_pairs(
    spec: TaskSpec,
    tokenizer: Tokenizer | None,
    *,
    counterfactual: str | None = None,
    count: int | None = None,
    seed: int | None = None,
    drop_bad_pairs: bool = False,
    zoo_pairs: Sequence[ZooPair] | None = None,
    n_vocab: int | None = None,
) -> PromptPairs:
    """The prompt pairs of a task for one tokenizer.

    Args:
        spec: The task.
        tokenizer: The model's; None for models without one (prompts are token ids, or words of ``vocab``).
        counterfactual: Which of the corrupted prompts; the first if None.
        count: How many pairs, instead of what the task says.
        seed: What templates are filled from, instead of what the task says.
        drop_bad_pairs: Put pairs that do not line up into ``dropped`` instead of refusing.
        zoo_pairs: The pairs that the zoo model made, for tasks with ``prompts: {zoo: ...}``.
        n_vocab: Size of the vocabulary, to check token ids where there is no tokenizer.

    Raises:
        TaskError: a prompt file or data set that cannot be read, or an unknown counterfactual.
        PromptError: pairs that do not line up (each shown with its tokens), or no usable pair.
    """
    if tokenizer is None and spec.vocab is not None:
        tokenizer = VocabTokenizer(spec.vocab)
    if tokenizer is None and needs_tokenizer(spec):
        raise PromptError(
            "the prompts are text, but the model has no tokenizer",
            hint="give prompts as lists of token ids, or list the words of the model as 'vocab'",
            where=spec.where("prompts"),
        )
    aligner = Aligner(
        tokenizer,
        _bos(spec, tokenizer),
        spec.positions,
        spec.answer_position,
        n_vocab,
        bos_before_ids=spec.prepend_bos is True,
    )
    asked = spec.count if count is None else count
    if asked is not None and asked < 1:
        raise PromptError(
            f"{asked} pairs were asked for", hint="ask for at least one", where=spec.where("prompts")
        )
    passed: dict[str, int] = {}
    raw, name, left_out = _raw_pairs(spec, aligner, counterfactual, asked, seed, zoo_pairs, passed)
    pairs: list[PromptPair] = []
    dropped: list[Dropped] = []
    for item in raw:
        try:
            pairs.append(aligner.align(item))
        except PairProblem as problem:
            dropped.append(Dropped(item.where, problem.reason, problem.shown))
    if dropped and not (drop_bad_pairs and pairs):
        raise _bad_pairs(spec, dropped, len(raw))
    if not pairs:
        raise PromptError(
            "there is no prompt pair",
            hint="check the values of the slots and what must be distinct",
            where=spec.where("prompts"),
            details=[f"left out of {slot}: {', '.join(values[:8])}" for slot, values in left_out.items()],
        )
    return PromptPairs(tuple(pairs), name, tuple(dropped), left_out, asked, passed)


def _raw_pairs(
    spec: TaskSpec,
    aligner: Aligner,
    counterfactual: str | None,
    count: int | None,
    seed: int | None,
    zoo_pairs: Sequence[ZooPair] | None,
    passed: dict[str, int],
) -> tuple[list[RawPair], str, dict[str, tuple[str, ...]]]:
    """The pairs before tokenisation, the counterfactual's name, and slot values left out; ``passed`` is filled."""
    prompts = spec.prompts
    if prompts.file is not None:
        try:
            path = named_file(spec.path, prompts.file, spec.where("prompts", "file"))
            pairs, name = read_pairs(path, counterfactual)
        except TaskError as error:
            if error.where is None:
                raise TaskError(error.what, hint=error.hint, where=spec.where("prompts", "file")) from None
            raise
        return pairs[:count], name, {}
    known = spec.counterfactuals
    name = known[0] if counterfactual is None else counterfactual
    if name not in known:
        raise TaskError(
            f"there is no counterfactual '{name}'",
            hint=did_you_mean(name, known),
            where=spec.where("prompts"),
        )
    if prompts.dataset is not None:
        rows, reasons = read_rows(prompts.dataset, spec.path, aligner, name, count)
        passed.update(reasons)
        return rows, name, {}
    if prompts.templates is not None:
        drawer = Drawer(spec, aligner, name)
        drawn = drawer.draw(count or 1, spec.seed if seed is None else seed)
        return drawn, name, drawer.left_out
    if prompts.zoo is not None:
        return _zoo(spec, zoo_pairs)[:count], name, {}
    return _inline(spec, name)[:count], name, {}


def _inline(spec: TaskSpec, counterfactual: str) -> list[RawPair]:
    found = []
    for number, pair in enumerate(spec.prompts.pairs or ()):
        found.append(
            RawPair(
                clean=_prompt(pair.clean),
                corrupted=_prompt(pair.counterfactuals[counterfactual]),
                answer=pair.answer if isinstance(pair.answer, tuple) else (pair.answer,),
                wrong=pair.wrong if isinstance(pair.wrong, tuple) else (pair.wrong,),
                where=f"{spec.place('prompts', 'pairs', number)}, pair {number + 1}",
                group=pair.group or "",
            )
        )
    return found


def _zoo(spec: TaskSpec, zoo_pairs: Sequence[ZooPair] | None) -> list[RawPair]:
    if zoo_pairs is None:
        raise PromptError(
            "the prompts of this task come from its own model, and this model brings none",
            hint=f"run it on '{spec.model}', or give the task prompts of its own",
            where=spec.where("prompts", "zoo"),
        )
    return [
        RawPair(
            clean=tuple(pair.clean),
            corrupted=tuple(pair.corrupted),
            answer=_ids(pair.answer),
            wrong=_ids(pair.wrong),
            where=f"{spec.model}, pair {number}",
            named=pair.positions,
        )
        for number, pair in enumerate(zoo_pairs, 1)
    ]


def _ids(value: Ids) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _prompt(value: str | tuple[int, ...]) -> Filled | tuple[int, ...]:
    return Filled(value, ()) if isinstance(value, str) else value


def needs_tokenizer(spec: TaskSpec) -> bool:
    """Whether a task's prompts are text."""
    prompts = spec.prompts
    from_text = prompts.templates is not None or prompts.dataset is not None
    return from_text or any(isinstance(pair.clean, str) for pair in prompts.pairs or ())


def _bos(spec: TaskSpec, tokenizer: Tokenizer | None) -> int | None:
    """The token to put in front of every prompt, as ``prepend-bos`` says."""
    own = None if tokenizer is None else tokenizer.bos
    if spec.prepend_bos is False:
        return None
    if spec.prepend_bos is True and own is None:
        own = getattr(tokenizer, "bos_id", None)
        if own is None:
            raise PromptError(
                "the tokenizer has no beginning-of-text token to prepend",
                hint="say 'prepend-bos: auto', or start the prompts with the token themselves",
                where=spec.where("prepend-bos"),
            )
    return own


def _bad_pairs(spec: TaskSpec, bad: Sequence[Dropped], total: int) -> PromptError:
    details: list[str] = []
    for pair in bad[:SHOWN]:
        details += [f"{pair.where}: {pair.reason}", *(f"  {line}" for line in pair.shown)]
    if len(bad) > SHOWN:
        details.append(f"and {len(bad) - SHOWN} more")
    usable = len(bad) < total
    return PromptError(
        f"{len(bad)} of {total} prompt pairs cannot be used"
        if usable
        else f"none of {total} prompt pairs can be used",
        hint="mend them, or go on without them by --drop-bad-pairs"
        if usable
        else "mend the prompts or the templates",
        where=spec.where("prompts"),
        details=details,
    )


__all__ = [
    "DEFAULT_COUNTERFACTUAL",
    "Dropped",
    "Padded",
    "PromptPair",
    "PromptPairs",
    "Tokenizer",
    "VocabTokenizer",
    "make_pairs",
    "pad",
]
