"""Look for backups in the trained models of the zoo, and at how much of it holds; write docs/backups-in-mini.md.

python scripts/trained_backups.py                     both models, all behaviours, in some minutes
python scripts/trained_backups.py --tasks ioi --out page.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from circuitfind.backups.report import Account, BackupReport
from circuitfind.backups.screen import account, at_answers, screen
from circuitfind.backups.search import END, find_backups
from circuitfind.backups.seeds import SeedSet
from circuitfind.backups.verify import removed_values
from circuitfind.config import Ablation
from circuitfind.model.bridge import Model
from circuitfind.model.effects import DirectEffects
from circuitfind.model.load import load_model
from circuitfind.model.runs import Runs
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPairs
from circuitfind.task.spec import find_tasks, load_task
from circuitfind.zoo import TRAINED

ROOT = Path(__file__).resolve().parent.parent
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
DRAWS = 5
"""Draws of the prompts, the task's own first."""
RANDOM_MODELS = 3
TEMPLATES, FEWEST = 512, 32
"""Prompts that are sorted by template, and how many of one there must be to search it alone."""


@dataclass
class Held:
    """What was found in one model on one task, and how well it holds."""

    model: str
    task: str
    report: BackupReport
    clean: float
    n_prompts: int
    over_draws: float
    over_templates: float | None
    shuffled: int
    random: int
    layers: list[tuple[str, Account, float]]
    repaired: float | None
    freed: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default="")
    parser.add_argument("--models", default=",".join(TRAINED))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "backups-in-mini.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    wanted = [name for name in args.tasks.split(",") if name]
    found: list[Held] = []
    for name in args.models.split(","):
        model = load_model(name, device="cpu")
        for task, path in find_tasks([ROOT / "tasks"]).items():
            if load_task(path).model == "mini" and (not wanted or task in wanted):
                found.append(examine(name, model, task, path))
                say(f"{name} {task}: {time.perf_counter() - start:.0f} s, {names(found[-1].report)}")
                args.out.write_text(page(found), encoding="utf-8")
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- what is run --------------------------------------------------------------------------------------------------


def examine(name: str, model: Model, task: str, path: Path) -> Held:
    """The search on a task, on other prompts of it, template by template, and on what has no backups."""
    draws = [pairs_of(name, model, path, seed) for seed in (None, *range(1001, 1000 + DRAWS))]
    reports = [search(model, pairs) for pairs in draws]
    own = draws[0]
    many = pairs_of(name, model, path, None, count=TEMPLATES)
    templates = []
    for group in sorted({pair.group for pair in many}):
        rows = [i for i, pair in enumerate(many) if pair.group == group]
        if len(rows) >= FEWEST:
            templates.append(many.subset(rows[: len(own)]))
    each = [search(model, some) for some in templates] if len(templates) > 1 else []
    return Held(
        model=name,
        task=task,
        report=reports[0],
        clean=float(runs_of(model, own).clean.mean()),
        n_prompts=len(own),
        over_draws=agreement(reports),
        over_templates=agreement([reports[0], *each]) if each else None,
        shuffled=len(search(model, shuffled(own)).backups),
        random=sum(len(search(fresh(model, seed), own).backups) for seed in range(RANDOM_MODELS)),
        layers=whole_layers(model, own),
        **repair_of(model, own, reports[0]),
    )


def repair_of(model: Model, pairs: PromptPairs, report: BackupReport) -> dict[str, Any]:
    """What later heads prevent in the largest set in which backups were found, and what of it the found ones do."""
    at_end = [f for f in report.backups if f.reader == "logits"]
    if not at_end:
        return {"repaired": None, "freed": 0.0}
    runs, anatomy = runs_of(model, pairs), model.anatomy
    removed = sorted({anatomy.writer_names.index(name) for f in at_end for name in f.covers})
    found = [anatomy.writer_names.index(f.name) for f in at_end]
    later = [row for row in anatomy.head_rows if row > max(removed)]
    plain, frozen, all_frozen = removed_values(
        runs, [removed] * 3, "mean", at_answers(pairs), held=[[], found, later]
    ).mean(1)
    return {"repaired": float(plain - all_frozen), "freed": float(plain - frozen)}


def pairs_of(name: str, model: Model, path: Path, seed: int | None, count: int | None = None) -> PromptPairs:
    """The pairs of a task that the model answers rightly, and of which a mean can be taken: no pair without a like one."""
    spec = load_task(path)
    session = Session(spec, resolve(spec, model=name, seed=seed, count=count, metric="logit-diff"), "cpu")
    session.__dict__["model"] = model  # loaded once
    pairs = session.all_pairs
    pairs = pairs.subset(int(i) for i in np.flatnonzero(session.runs_of(pairs).answered_rightly))
    like = Counter((p.group, len(p.clean)) for p in pairs)
    return pairs.subset(i for i, p in enumerate(pairs) if like[p.group, len(p.clean)] > 1)


def runs_of(model: Model, pairs: PromptPairs) -> Runs:
    return Runs(model, pairs, get_metric("logit-diff"))


def search(model: Model, pairs: PromptPairs) -> BackupReport:
    return find_backups(runs_of(model, pairs), ABLATIONS)


def whole_layers(model: Model, pairs: PromptPairs) -> list[tuple[str, Account, float]]:
    """All heads of a layer removed together under zero ablation, which is what stochastic depth did in training.

    Returns layer, accounts, and what is lost when all later heads keep their clean values less what is lost when they
    do not: what they repair.
    """
    runs, anatomy = runs_of(model, pairs), model.anatomy
    sets = [
        SeedSet(f"a{layer}", tuple(range(anatomy.head_slice(layer).start, anatomy.head_slice(layer).stop)))
        for layer in range(anatomy.n_layers)
    ]
    found = screen(DirectEffects(runs, [END]), 0, sets, [], "zero", None)
    later = [[row for row in anatomy.head_rows if row > max(s.rows)] for s in sets]
    frozen = removed_values(runs, [s.rows for s in sets], "zero", None, held=later)
    return [
        (
            s.name,
            account(found, i, anatomy, runs.clean, at_end=True),
            float((found.values[i] - frozen[i]).mean()),
        )
        for i, s in enumerate(sets)
    ]


def shuffled(pairs: PromptPairs) -> PromptPairs:
    """Every prompt with the answers of another one that asks for something else, where there is one."""
    rng = np.random.default_rng(0)
    out = []
    for pair in pairs:
        others = [p for p in pairs if not {*p.answer, *p.wrong} & {*pair.answer, *pair.wrong}]
        if others:
            other = others[int(rng.integers(len(others)))]
            out.append(replace(pair, answer=other.answer, wrong=other.wrong))
    return replace(pairs, pairs=tuple(out)) if out else pairs


def fresh(model: Model, seed: int) -> Model:
    """The same architecture with random weights."""
    config = GPT2Config(
        vocab_size=model.n_vocab,
        n_positions=model.n_ctx,
        n_embd=model.d_model,
        n_layer=model.anatomy.n_layers,
        n_head=model.anatomy.n_heads,
    )
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(config).save_pretrained(folder)
        return load_model(folder, device="cpu")


def agreement(reports: Sequence[BackupReport]) -> float:
    """Mean Jaccard index of the backups over all pairs of searches; 1 where neither finds any."""
    sets = [{(f.reader, f.name) for f in report.backups} for report in reports]
    values = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return float(np.mean(values))


# --- the page -------------------------------------------------------------------------------------------------------


def names(report: BackupReport) -> str:
    """The backups that were found, or none."""
    return ", ".join(f"{f.name} for {'+'.join(f.covers)}" for f in report.backups) or "none"


HEAD = """# Backups in trained models

Made by `scripts/trained_backups.py`: the search for backups (`circuitfind backups TASK --model MODEL`) with its defaults, on
every behaviour of the two trained models that come with circuitfind. `mini` was trained as usual. `mini-redundant` is the same
model on the same text, but in the last third of the training each attention layer was left out of every document with a
chance of 15 % (stochastic depth, ramped up before that): a reason for later heads to be able to do what earlier ones do.

Columns: **clean** logit difference. **backups**: what was found, and for what. **repair**: how much of the loss heads
prevent in the removed set in which most backups were found (mean ablation: the loss when all later heads keep their
clean values, less the real one), and **of it freed** when only the found backups keep theirs. **draws**: mean Jaccard
index of the backups between {draws} draws of the prompts; **templates**: between all prompts and those of each
template with at least {fewest}; 1 where none is found either time. **controls**: backups found on shuffled pairs
(each prompt with the answers of another), and in {models} models with random weights.
"""


def page(found: list[Held]) -> str:
    """The Markdown page."""
    text = HEAD.format(draws=DRAWS, fewest=FEWEST, models=RANDOM_MODELS)
    for model in dict.fromkeys(h.model for h in found):
        mine = [h for h in found if h.model == model]
        text += f"\n## `{model}`\n\n"
        text += table(
            ["task", "clean", "backups", "repair", "of it freed", "draws", "templates", "controls"],
            [
                [
                    h.task,
                    f"{h.clean:.2f}",
                    names(h.report),
                    "" if h.repaired is None else f"{h.repaired:.2f}",
                    "" if not h.repaired else f"{h.freed / h.repaired:.0%}",
                    f"{h.over_draws:.2f}",
                    "" if h.over_templates is None else f"{h.over_templates:.2f}",
                    f"{h.shuffled} and {h.random}",
                ]
                for h in mine
            ],
        )
        gap = max(abs(a.gap) for h in mine for s in h.report.sets for a in s.accounts)
        text += f"\nThe accounts of all {sum(len(h.report.sets) for h in mine)} removed sets add up to {gap:.1g} at the worst.\n"
        text += "\nAll heads of a layer removed at once (zero ablation, everywhere), as training did to `mini-redundant`: "
        text += "what they wrote directly, what the loss is, and how much later heads prevent.\n\n"
        layers = [name for name, _, _ in mine[0].layers]
        text += table(
            ["task", *(f"{name} {what}" for name in layers[:-1] for what in ("wrote", "lost", "prevented"))],
            [
                [h.task, *(f"{x:.2f}" for _, a, p in h.layers[:-1] for x in (a.lost_direct, a.lost, p))]
                for h in mine
            ],
        )
    return text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
