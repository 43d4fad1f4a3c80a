"""Find circuits of heads with features, and of heads with neurons, in ``mini``, and write docs/units-in-mini.md and a picture.

python scripts/mini_units.py                reuses what is finished in outputs/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import circuitfind
from circuitfind.output.dot import to_dot
from circuitfind.output.draw import render
from circuitfind.zoo.mini import transcoders_folder

ROOT = Path(__file__).resolve().parent.parent
FEATURES = ("greater-than", "gendered-pronoun", "subject-verb-agreement")
NEURONS = ("greater-than",)
PICTURE = "greater-than"
EVALUATIONS = 3000
HEAD = f"""# Features and neurons of `mini`

Made by `scripts/mini_units.py`: `circuitfind discover TASK --nodes heads,features` (and `heads,neurons`), pruned to
faithfulness 0.9 under resample ablation with at most {EVALUATIONS:,} circuits, 64 prompt pairs, the transcoders that come with
the model (768 features a layer, TopK 16), errors frozen. Features are counted that fire at some token of the clean or corrupted
prompts. "Signs": of the kept units that were really replaced one by one, how many change the metric in the direction that
attribution says. "Through errors": the share of the effect that goes when the errors of all layers are replaced and nothing
else is.

"""
GROUPS = """
Groups of neurons that do little alone, as they were found before nodes were chosen:

"""
COLUMNS = (
    "task",
    "nodes",
    "units kept",
    "of",
    "share",
    "heads",
    "errors",
    "edges",
    "faithfulness (resample)",
    "faithfulness (mean)",
    "signs",
    "through errors",
)
TAIL = """
The circuits are what is left when everything else carries the values of the corrupted prompts; they are circuits under these
conditions, and other sets of features may do as well. Most tasks of `mini` ask for many words, and each word has features of its
own: with `ioi`, `docstring` or `induction` 160 to 220 of the 1,500 to 2,000 features that fire are needed (as nodes, for 0.95).
A neuron of `mini` takes part in much more than a feature does, so several times as many neurons as features are needed for the
same behaviour. Where many edges are left, the circuits that may be tried were used up before every edge was.

![A circuit of heads and features](images/greater-than-features.svg)
"""


def main() -> int:
    """Run, write, say where."""
    transcoders_folder()
    runs = [(task, "heads,features") for task in FEATURES] + [(task, "heads,neurons") for task in NEURONS]
    rows, groups = [], []
    for task, nodes in runs:
        found = circuitfind.discover(task, nodes=nodes, evaluations=EVALUATIONS, backups=False)
        rows.append(row(task, nodes, found))
        groups += [f"* `{task}`: {text}" for text in together(found)]
        print(task, nodes, found.folder, file=sys.stderr)
        if (task, nodes) == (PICTURE, "heads,features"):
            render(to_dot(found.circuit), ROOT / "docs" / "images" / f"{task}-features", ("svg",))
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}", *rows]
    page = HEAD + "\n".join(lines) + "\n" + GROUPS + "\n".join(groups) + "\n" + TAIL
    (ROOT / "docs" / "units-in-mini.md").write_text(page, encoding="utf-8")
    return 0


def row(task: str, nodes: str, found: Any) -> str:
    """One line of the table."""
    data, circuit = found.summary, found.circuit
    units, counts = data["units"], data["counts"]
    kept = sum(len(node.units) for node in circuit.units)
    errors = units.get("share_through_errors")
    cells = [
        task,
        nodes,
        str(kept),
        f"{units['units']:,}",
        f"{100 * kept / units['units']:.1f} %",
        str(counts["heads"]),
        str(counts["errors"]),
        f"{counts['edges']} of {counts['edges_in_model']:,}",
        *(interval(one) for one in data["evaluations"]),
        f"{units['signs_agree']} of {units['signs_compared']}",
        "" if errors is None else f"{100 * errors:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


def together(found: Any) -> list[str]:
    """The groups that were found, in words."""
    gap = found.summary["evaluations"][0]["full"] - found.summary["evaluations"][0]["empty"]
    data = json.loads((found.folder / "units.json").read_text(encoding="utf-8"))
    return [
        f"{group['name'].count('+') + 1} neurons of layer {group['name'].split('.')[0].removeprefix('m')} do "
        f"{100 * group['effect'] / gap:.0f} % of the behaviour together, and at most "
        f"{100 * group['largest_alone'] / gap:.1f} % alone"
        for group in data["groups"]
    ]


def interval(evaluation: Any) -> str:
    """A value with the ends of its interval."""
    f = evaluation["faithfulness"]
    return f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
