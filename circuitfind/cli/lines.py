"""Lines that the printouts of several commands have in common: a title, and a text behind it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from circuitfind.cli.common import Screen, duration, share

START = 16
"""Column in which the text behind a title begins."""


def print_title(screen: Screen, conditions: Mapping[str, Any], what: str) -> None:
    """The task and the model, and what was found."""
    from rich.text import Text

    parts = ((conditions["task"], "bold"), " on ", (conditions["model"], "bold"), f": {what}")
    screen.out.print(Text.assemble(*parts))


def print_line(screen: Screen, title: str, *parts: str | tuple[str, str]) -> None:
    """A line of texts, each alone or with its style; an empty title goes on with the line above."""
    from rich.text import Text

    first = parts[0] if parts else ""
    listed = (first if isinstance(first, str) else first[0]).startswith("- ")
    screen.out.hanging(Text.assemble(f"  {title:<13} ", *parts), START + 2 * listed)


@dataclass(frozen=True)
class RunLines:
    """Lines of a run's verdict.

    Attributes:
        screen: Where they are printed.
        summary: The run's numbers, as its command prints them with --json.
    """

    screen: Screen
    summary: Mapping[str, Any]

    def line(self, title: str, text: str) -> None:
        """A line of one run alone."""
        print_line(self.screen, title, text)

    def heading(self, what: str, *others: str) -> None:
        """What was found, and what it holds under: ablation, counterfactual, metric, ``others`` and the rule."""
        conditions = self.summary["conditions"]
        print_title(self.screen, conditions, what)
        self.line("under", under(conditions, *others))

    def evaluations(self, *, whole: str = "model", low: str = "") -> None:
        """Faithfulness under each ablation.

        Args:
            whole: What the unablated model is called.
            low: Said below a second ablation under which less than half is carried.
        """
        for i, found in enumerate(self.summary["evaluations"]):
            value, _, ends = interval(found["faithfulness"]).partition(" ")
            print_line(
                self.screen,
                "" if i else "faithfulness",
                (value, "bold"),
                f" {ends} under {found['ablation']} ablation ({found['metric']} {found['circuit']:.3f}; "
                f"{whole} {found['full']:.3f}, empty {found['empty']:.3f}; {found['n_prompts']} prompts)",
            )
            if i and low and found["faithfulness"]["value"] < 0.5:
                self.line("", f"({low})")

    def prompts(self) -> None:
        """How many there were, and how many the model answers."""
        prompts = self.summary["prompts"]
        wrong = prompts["answered_wrongly"]
        left = f" ({wrong} answered wrongly left out)" if wrong else ""
        self.line("prompts", f"{prompts['used']} used{left}, accuracy {share(prompts['accuracy'])}")

    def strongest(self, scores: Iterable[tuple[str, float]]) -> None:
        """Names with their scores, as they come."""
        self.line("strongest", ", ".join(f"{shortened(name)} {score:+.2g}" for name, score in scores))

    def cost(self, tried: str) -> None:
        """Time and passes, and what was tried."""
        s = self.summary
        passes = f"{s['forward_passes']} forward and {s['backward_passes']} backward passes"
        self.line("cost", f"{duration(s['seconds'])}, {passes}, {tried} tried")

    def files(self, *, graph: bool = False) -> None:
        """The run folder, the graph where that is asked, the pictures and the report."""
        self.line("run", self.summary["folder"])
        if graph:
            self.line("graph", self.summary["graph"])
        for picture in self.summary["pictures"]:
            self.line("picture", picture)
        if self.summary.get("report"):
            self.line("report", self.summary["report"])

    @property
    def minimal(self) -> str:
        """What is said behind the number of nodes where every one is needed."""
        return ", none of which can be dropped alone" if self.summary["minimal"] else ""


def under(conditions: Mapping[str, Any], *others: str) -> str:
    """What a circuit holds under: ablation, counterfactual, metric, ``others`` and the rule."""
    told = (
        f"{conditions['ablation']} ablation",
        f"counterfactual {conditions['counterfactual']}",
        f"metric {conditions['metric']}",
        *others,
        f"pruned to {conditions['rule']}",
    )
    return ", ".join(told)


def shortened(name: str) -> str:
    """A node or an edge with its groups cut short: ``m0.n8+9+12+15->logits`` is ``m0.n8 +3->logits``, as in pictures."""
    return re.sub(r"(\.[nf]\d+)((?:\+\d+){2,})", lambda m: f"{m[1]} +{m[2].count('+')}", name)


def strongest_nodes(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The first six that a feature graph's summary names."""
    return [(node["name"], node["score"]) for node in summary["strongest"][:6]]


def interval(found: Mapping[str, float | None]) -> str:
    """A value and the ends of its interval, as ``circuit.graph.Interval`` prints them; what is null in JSON is unbounded."""
    value, low, high = (
        math.inf * sign if found[key] is None else found[key]
        for key, sign in (("value", 1), ("low", -1), ("high", 1))
    )
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
