"""What tasks and prompt pairs look like in a notebook."""

from __future__ import annotations

from circuitfind.output.card import Card, Table
from circuitfind.task.pairs import PromptPair, PromptPairs
from circuitfind.task.spec import TaskSpec

ROWS = 6


def task(found: TaskSpec) -> Card:
    """What the model is to do, and on which prompts."""
    prompts = found.prompts
    facts = [
        ("what", found.description or ""),
        ("model", found.model),
        (
            "prompts",
            f"{prompts.kind}, {'all' if found.count is None else found.count} pairs, seed {found.seed}",
        ),
        ("counterfactuals", ", ".join(found.counterfactuals)),
        ("measured by", f"{found.metric}, {found.ablation} ablation, {found.direction}"),
        ("known circuits", ", ".join(found.known)),
        ("file", str(found.path or "")),
    ]
    rows = [
        (_text(item.clean), name, _text(corrupted))
        for item in (prompts.templates or prompts.pairs or ())
        for name, corrupted in item.counterfactuals.items()
    ]
    more = f"and {len(rows) - ROWS} more" if len(rows) > ROWS else ""
    table = Table(("clean", "counterfactual", "corrupted"), tuple(rows[:ROWS]), "", more)
    return Card(f"task {found.name}", tuple(fact for fact in facts if fact[1]), (table,))


def _text(prompt: str | tuple[int, ...]) -> str:
    """A prompt may be a list of token ids."""
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def pair(found: PromptPair) -> Card:
    """Both prompts, and where they differ."""
    facts = (
        ("clean", found.clean_text),
        ("corrupted", found.corrupted_text),
        ("differ at", _places(found)),
        ("answer", _ids(found.answer)),
        ("wrong", _ids(found.wrong)),
        ("read at", str(found.answer_position)),
    )
    return Card(f"pair at {found.where}", facts)


def pairs(found: PromptPairs) -> Card:
    """The first pairs, and what a reader should know of all."""
    facts = [("counterfactual", found.counterfactual)]
    facts += [("notes", "\n".join(found.notes))] if found.notes else []
    rows = tuple((p.clean_text, p.corrupted_text, _places(p), p.where) for p in found.pairs[:ROWS])
    more = f"and {len(found) - ROWS} more" if len(found) > ROWS else ""
    table = Table(("clean", "corrupted", "differ at", "where"), rows, "", more)
    return Card(f"{len(found)} prompt pairs", tuple(facts), (table,))


def _places(found: PromptPair) -> str:
    """Positions at which the tokens differ, with names."""
    names: dict[int, list[str]] = {}
    for name, at in found.positions.items():
        names.setdefault(at, []).append(name)
    differ = [
        i for i, both in enumerate(zip(found.clean, found.corrupted, strict=True)) if both[0] != both[1]
    ]
    return ", ".join(f"{i} ({'/'.join(names[i])})" if i in names else str(i) for i in differ) or "nowhere"


def _ids(tokens: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, tokens[:8]))
    return f"token {shown}" if len(tokens) == 1 else f"tokens {shown}{', ...' if len(tokens) > 8 else ''}"
