"""The whole search for backups, reader by reader."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from circuitfind.backups.cost import Cost
from circuitfind.backups.reading import Reading, Search
from circuitfind.backups.report import CLASSES, BackupReport, Finding
from circuitfind.backups.seeds import find_seeds, written
from circuitfind.config import Ablation
from circuitfind.model.effects import DirectEffects, Reader
from circuitfind.model.looks import answer_attention
from circuitfind.model.runs import Runs
from circuitfind.names import LOGITS, Kind, Node

END: Reader = (LOGITS, None)
STRONGEST = 4
"""Writers at the logits whose inputs are looked at."""
WRITTEN = 0.15
"""An input is looked at when heads write at least so much to it, as a share of what is written to the logits."""


def find_backups(
    runs: Runs,
    ablations: Sequence[Ablation],
    *,
    primaries: Sequence[Node] = (),
    readers: Sequence[Reader] | None = None,
    circuit: Collection[Node] = (),
    options: Search | None = None,
    conditions: Mapping[str, object] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> BackupReport:
    """Find what stands in when heads are removed.

    Args:
        runs: Prompts; the metric must be the logit difference, the only one in which direct effects add up.
        ablations: Two of them must agree before a component is called a backup; of one alone, that one.
        primaries: What to remove; by default what the direct effects point to.
        readers: What is written to; the logits and, by ``options.inner``, inputs of the strongest heads by default.
        circuit: Heads of a circuit: those that write to a reader are removed together, too.
        options: The rest.
        conditions: Kept in the report.
        report: Hears of progress.
    """
    options, primaries = options or Search(), list(dict.fromkeys(primaries))
    if runs.metric.name != "logit-diff":
        raise ValueError("direct effects add up in the logit difference alone")
    return runs.fitted(
        lambda: _find(runs, ablations, primaries, readers, circuit, options, dict(conditions or {}), report)
    )


def _find(
    runs: Runs,
    ablations: Sequence[Ablation],
    primaries: Sequence[Node],
    readers: Sequence[Reader] | None,
    circuit: Collection[Node],
    options: Search,
    conditions: Mapping[str, object],
    report: Callable[[str], None],
) -> BackupReport:
    counts = Cost(runs)
    ends = DirectEffects(
        runs, [r for r in readers or [END] if r == END], shuffled=options.nulls, seed=options.seed
    )
    looks = answer_attention(runs)
    searches = [
        Reading(ends, number, ablations, options, counts, looks, circuit, primaries)
        for number in range(len(ends.readers))
    ]
    within = None
    if readers is not None:
        inner = [r for r in readers if r != END]
        within = DirectEffects(runs, inner) if inner else None
    elif options.inner and not primaries:
        report("choosing an input of a head to look at")
        within = _inner_readers(runs, searches[0], options)
    if within is not None:
        searches += [
            Reading(within, number, ablations, options, counts, None, circuit, primaries)
            for number in range(len(within.readers))
        ]
    for each in searches:
        report(f"removing what writes to {each.name}")
        each.run()
    return BackupReport(
        readers=tuple(s.name for s in searches),
        seeds={s.name: tuple(str(runs.model.anatomy.writers[row]) for row in s.seeds) for s in searches},
        sets=tuple(one for s in searches for one in s.removed),
        findings=tuple(sorted((f for s in searches for f in s.findings), key=_order)),
        groups=tuple(g for s in searches for g in s.groups),
        scores={s.name: s.scores for s in searches},
        cost=counts.as_dict(),
        conditions=conditions,
        notes=tuple(note for s in searches for note in s.notes),
    )


def _order(found: Finding) -> tuple[int, float]:
    return CLASSES.index(found.kind), -(found.share or found.direct.value)


def _inner_readers(runs: Runs, end: Reading, options: Search) -> DirectEffects | None:
    """Effects on inputs that heads write to, of the heads and MLPs that write most to the logits; the strongest first."""
    anatomy = runs.model.anatomy
    strongest = find_seeds(anatomy, end.direct, rate=options.rate, seed=options.seed, mlps=True)[:STRONGEST]
    names = dict.fromkeys(name for row in strongest for name in anatomy.readers_of(anatomy.writers[row]))
    inputs: list[Reader] = [anatomy.readers[anatomy.reader_index[name]] for name in names]
    # One layer of heads below a reader has no later heads that could stand in.
    inputs = [(node, slot) for node, slot in inputs if node.layer >= (1 if node.kind is Kind.MLP else 2)]
    if not inputs:
        return None
    effects = DirectEffects(runs, inputs)
    strength: dict[Reader, float] = {}
    for number, reader in enumerate(inputs):
        seeds = find_seeds(anatomy, effects.clean[number], rate=options.rate, seed=options.seed)
        strength[reader] = float(effects.clean[number][seeds].mean(1).sum()) if seeds else 0.0
    least = WRITTEN * written(end.direct)
    order = sorted(inputs, key=lambda r: -strength[r])
    chosen = [r for r in order if strength[r] >= least and strength[r] > 0][: options.inner]
    return effects.only(chosen) if chosen else None
