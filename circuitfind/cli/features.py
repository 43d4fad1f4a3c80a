"""How ``discover --nodes features`` tells what it found."""

from __future__ import annotations

from typing import Any

from circuitfind.cli.common import Screen, duration, number, share


def show_features(screen: Screen, summary: dict[str, Any]) -> None:
    """A run's verdict in a few lines."""
    out, conditions, counts = screen.out, summary["conditions"], summary["counts"]
    out.print(
        f"[bold]{conditions['task']}[/bold] on [bold]{conditions['model']}[/bold]: a circuit of features, attention frozen"
    )
    out.print(
        f"  under         {conditions['ablation']} ablation, counterfactual {conditions['counterfactual']}, "
        f"metric {conditions['metric']}, errors frozen, pruned to {conditions['rule']}"
    )
    for i, found in enumerate(summary["evaluations"]):
        f = found["faithfulness"]
        out.print(
            f"  {'' if i else 'faithfulness':<13} {f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}] under {found['ablation']} ablation "
            f"({found['metric']} {found['circuit']:.3f}; full {found['full']:.3f}, empty {found['empty']:.3f}; "
            f"{found['n_prompts']} prompts)",
            markup=False,
        )
    minimal = ", none of which can be dropped alone" if summary["minimal"] else ""
    active = counts["active_features"]
    out.print(
        f"  kept          {number(counts['features'], 'feature')} of {active:,} that fire "
        f"({share(counts['features'] / max(active, 1))}){minimal}; {number(counts['edges'], 'edge')} among them, errors "
        "and the input"
    )
    out.print(
        f"  errors        {share(summary['share_through_errors'])} of the effect goes when what dictionaries miss is replaced; "
        f"{share(summary['errors']['by_score'])} of the summed |score|"
    )
    prompts = summary["prompts"]
    left = (
        f" ({prompts['answered_wrongly']} answered wrongly left out)" if prompts["answered_wrongly"] else ""
    )
    out.print(f"  prompts       {prompts['used']} used{left}, accuracy {share(prompts['accuracy'])}")
    strongest = ", ".join(f"{node['name']} {node['score']:+.2g}" for node in summary["strongest"][:6])
    out.print(f"  strongest     {strongest}", markup=False)
    out.print(
        f"  cost          {duration(summary['seconds'])}, {summary['forward_passes']} forward and "
        f"{summary['backward_passes']} backward passes, {number(summary['sets_tried'], 'set')} of features tried"
    )
    out.print(f"  run           {summary['folder']}", markup=False)
    for picture in summary["pictures"]:
        out.print(f"  picture       {picture}", markup=False)
