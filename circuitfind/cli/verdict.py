"""A run's verdict in a few lines, as ``discover`` and ``show`` print it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from circuitfind.cli.common import Screen, number, share
from circuitfind.cli.evidence_lines import evidence_lines
from circuitfind.cli.lines import RunLines, interval
from circuitfind.names import Kind

KEPT = {"model": "the model", "circuit": "the circuit", "circuit_and_backups": "the circuit with its backups"}


def show_summary(screen: Screen, summary: Any, circuit: Any) -> None:
    """A run's verdict in a few lines."""
    from circuitfind.circuit.counts import parts_in_words

    told, conditions, counts = RunLines(screen, summary), summary["conditions"], summary["counts"]
    told.heading(f"a circuit found by {conditions['method']}", conditions["direction"])
    told.evaluations(low="there, what clean and corrupted prompts have in common is cut as well")
    for title, line in evidence_lines(summary["evidence"]):
        told.line(title, line)
    kept = f"{counts['nodes']} nodes ({parts_in_words(circuit)}), {counts['edges']} of {counts['edges_in_model']} edges"
    told.line("kept", f"{kept} ({share(counts['share_of_edges'])}){told.minimal}")
    told.line("prompts", prompts_line(summary["prompts"]))
    if summary["known"]:
        known = summary["known"]
        told.line(
            "known circuit",
            f"precision {known['precision']:.2f}, recall {known['recall']:.2f} over its {known['level']}",
        )
    for title, line in (*across(summary), *below(summary, circuit), *checked(summary), *stood_in(summary)):
        told.line(title, line)
    scored = {name: s for name, s in circuit.edge_scores.items() if _size(s) > 0}
    scored = scored or {name: s for name, s in circuit.node_scores.items() if _size(s) > 0}  # node methods
    strongest = sorted(scored.items(), key=lambda item: -_size(item[1]))[:5]
    if strongest:
        told.strongest(strongest)
    told.cost(f"{summary['circuits_tried']} circuits")
    told.files()


def prompts_line(prompts: Any) -> str:
    """How many there were, and what was left out."""
    left = [f"{prompts['answered_wrongly']} answered wrongly"] if prompts["answered_wrongly"] else []
    left += [f"{prompts['dropped_unaligned']} not aligned"] if prompts["dropped_unaligned"] else []
    split = sum(prompts["left_out"].values())
    words = f"; {number(split, 'slot value')} left out, not one token here" if split else ""
    without = f" (left out: {', '.join(left)})" if left else ""
    return f"{prompts['used']} used{without}, accuracy {share(prompts['accuracy'])}{words}"


def checked(summary: Any) -> Iterator[tuple[str, str]]:
    """What is known of how far the scores can be trusted: title and text of each line."""
    found = summary["verification"]
    if found is not None:
        things = f"{found['level']}s"
        told = [
            f"{found[key]:.2f}"
            for key in ("rank_correlation", "rank_correlation_drawn")
            if found[key] is not None
        ]
        ranks = f": rank correlation with {found['proposed_by']} {' and '.join(told)}" if told else ""
        yield (
            "checked",
            f"exact patching of the {found['verified']} strongest and {found['drawn']} random {things}{ranks}",
        )
        left = found["others"] - found["drawn"]
        bound = found["bounds"][0]
        if not left:
            yield "", f"that is every {found['level']}: none was missed"
        else:
            what = f"as strong as the {_ordinal(bound['k'])} strongest verified"
            yield (
                "",
                f"at {share(found['confidence'])} confidence at most {bound['at_most']:,} of the {left:,} others are {what}",
            )
    low = summary["precision_check"]
    if low is not None:
        ranks = f" and ranks {low['rank_correlation']:.3f}" if low["rank_correlation"] is not None else ""
        same = (
            f"on {low['pairs']} pairs {share(low['overlap'])} of the {low['k']} strongest{ranks} as in fp32"
        )
        yield "precision", f"{low['precision']}: {same}; faithfulness is measured in fp32"


def across(summary: Any) -> Iterator[tuple[str, str]]:
    """What is told of two models: what each does, and the parts whose own weights changed most."""
    found = summary["model_b"]
    if found is None:
        return
    metric, of = found["metric"], summary["conditions"]
    read = f" ({metric['read_by_model']:.3f} read by {of['model']})" if found["unembedding_differs"] else ""
    there = f"{of['metric']} {metric['model_b']:.3f} there{read}, {metric['model']:.3f} here"
    yield "model B", f"{found['name']}: {there}; cut edges carry its values"
    strongest = [f"{row['name']} {share(row['share']['value'])}" for row in found["changed"][:5]]
    more = found["n_changed"] - len(strongest)
    whose = "its own weights" if found["n_changed"] == 1 else "their own weights"
    rest = f"; {more} more of {number(found['n_parts'], 'part')}" if more else ""
    told = f"{', '.join(strongest)} of the difference by {whose}{rest}" if strongest else "no part alone"
    yield "changed", told


def below(summary: Any, circuit: Any) -> Iterator[tuple[str, str]]:
    """What is told of the units of a circuit, and of the errors of the dictionaries that they are of."""
    found = summary["units"]
    if found is None:
        return
    kind = "features that fire here" if circuit.conditions.nodes != "heads,neurons" else "neurons"
    kept = sum(len(node.units) for node in circuit.units)
    yield (
        "units",
        (
            f"{kept} of {found['units']:,} {kind} ({share(kept / max(found['units'], 1))}); "
            f"{found['verified']} nodes replaced one by one"
        ),
    )
    if found["signs_compared"]:
        yield (
            "",
            (
                f"attribution has the sign of the real effect in {found['signs_agree']} of the "
                f"{number(found['signs_compared'], 'unit')} kept before edges were pruned"
            ),
        )
    lost = found.get("share_through_errors")
    if lost is not None:
        total = sum(node.kind is Kind.ERROR for node in circuit.anatomy.writers)
        yield (
            "errors",
            (
                f"{share(lost)} of the effect goes when what dictionaries miss is replaced; "
                f"the circuit has {len(circuit.errors)} of {number(total, 'error')}"
            ),
        )


def _ordinal(count: int) -> str:
    ending = "th" if count // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"


def _size(score: float | None) -> float:
    return abs(score) if score is not None and score == score else 0.0


def stood_in(summary: Any) -> Iterator[tuple[str, str]]:
    """What stands in when heads are removed, what the circuit leaves without it, and what was left out because of it."""
    found = summary["backups"]
    if found is None:
        return
    text = f"not searched: {found['skipped']}" if found["skipped"] else found["verdict"]
    text += "; see `circuitfind show --backups`" if found["counts"] else ""
    yield "backups", text
    if found["included"]:
        before = found["faithfulness_without"][0]["faithfulness"]
        yield "", f"included in the circuit; without them its faithfulness is {interval(before)}"
    complete = summary["completeness"]
    if complete is not None:
        text = f"{interval(complete['without_circuit'])} is left without the circuit"
        both = complete["without_circuit_and_backups"]
        text += f", {interval(both)} without its backups too" if both is not None else ""
        yield "completeness", f"{text} (0 is complete)"
        gone = complete["knocked_out"]
        if gone is not None:
            keeps = [f"{interval(gone[name])} of {what}" for name, what in KEPT.items()]
            text = f"without {' + '.join(gone['nodes'])} there is left {', '.join(keeps)}"
            yield "", text
    for group in summary["redundant"]:
        stand = "stands" if len(group["backups"]) == 1 else "stand"
        nodes, others = ", ".join(group["nodes"]), ", ".join(group["backups"])
        why = f"since without the redundant group {' + '.join(group['group'])} there is {others}, which {stand} in"
        yield "redundant", f"{nodes}: not in the circuit, {why}"
