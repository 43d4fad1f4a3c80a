"""Find the circuit of every behaviour of ``mini`` and write docs/mini-circuits.md and the README's picture from the runs.

python scripts/mini_circuits.py             reuses what is finished in outputs/
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import circuitfind
from circuitfind.output.dot import to_dot
from circuitfind.output.draw import render
from circuitfind.task.spec import find_tasks, load_task
from circuitfind.zoo.mini import weights_folder

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# The circuits of `mini`

Made by `scripts/mini_circuits.py`: `circuitfind discover TASK` for every behaviour of the embedded model, with the defaults
(scores by `hybrid`, resample ablation, noising, pruned to faithfulness 0.9, 64 prompt pairs) and the task's first
counterfactual. Each circuit is minimal in the sense that no edge of it can be dropped alone; `tried` counts the circuits that
were run to find it. `new prompts` is what the same circuit carries on as many others that it was not pruned on, and `verdict`
what `circuitfind certify` says of that at faithfulness 0.8 ([evidence.md](evidence.md)): under which ablations it holds, all
controls being beaten. Intervals are 95 % bootstrap intervals over prompts.

"""
COLUMNS = (
    "task",
    "counterfactual",
    "faithfulness (resample)",
    "faithfulness (other)",
    "new prompts (resample)",
    "new prompts (other)",
    "verdict",
    "nodes",
    "edges kept",
    "share",
    "accuracy",
    "tried",
)


def main() -> int:
    """Run, write, say where."""
    weights_folder()
    rows = []
    for name, path in find_tasks([ROOT / "tasks"]).items():
        spec = load_task(path)
        if spec.model != "mini":
            continue
        found = circuitfind.discover(spec)
        rows.append((name, found))
        print(name, found.folder, file=sys.stderr)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [row(name, found.summary) for name, found in rows]
    parts = [HEAD, "\n".join(lines), "\n\n## Strongest edges\n\n"]
    parts += [f"* **{name}**: {strongest(found.circuit)}\n" for name, found in rows]
    (ROOT / "docs" / "mini-circuits.md").write_text("".join(parts), encoding="utf-8")
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    ioi = next(found for name, found in rows if name == "ioi")
    render(to_dot(ioi.circuit), images / "ioi-mini", ("svg",))
    return 0


def row(name: str, summary: object) -> str:
    """One line of the table."""
    data = dict(summary)  # type: ignore[call-overload]  # a mapping of plain data
    first, *others = data["evaluations"]
    counts = data["counts"]
    other = f"{interval(others[0])} {others[0]['ablation']}" if others else ""
    cells = [
        name,
        data["conditions"]["counterfactual"],
        interval(first),
        other,
        *on_new_prompts(data["evidence"]),
        str(counts["nodes"]),
        f"{counts['edges']} of {counts['edges_in_model']}",
        f"{100 * counts['share_of_edges']:.1f} %",
        f"{100 * data['prompts']['accuracy']:.0f} %",
        str(data["circuits_tried"]),
    ]
    return f"| {' | '.join(cells)} |"


def on_new_prompts(evidence: dict[str, Any]) -> tuple[str, str, str]:
    """Faithfulness under both ablations, and the verdict."""
    first, *others = evidence["measured"]
    other = f"{interval(others[0])} {others[0]['ablation']}" if others else ""
    holds = " and ".join(evidence["holds_under"])
    verdict = "refuted" if evidence["refuted"] else f"holds under {holds}" if holds else "refused"
    return interval(first), other, "certified" if evidence["certified"] else verdict


def interval(evaluation: dict[str, dict[str, float]]) -> str:
    """``0.91 [0.89, 0.93]``."""
    f = evaluation["faithfulness"]
    return f"{f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]"


def strongest(circuit: circuitfind.Circuit, count: int = 6) -> str:
    """The strongest edges with their scores."""
    ranked = sorted(circuit.edges, key=lambda edge: -abs(circuit.edge_scores[str(edge)]))
    return ", ".join(f"`{edge}` {circuit.edge_scores[str(edge)]:+.2f}" for edge in ranked[:count])


if __name__ == "__main__":
    sys.exit(main())
