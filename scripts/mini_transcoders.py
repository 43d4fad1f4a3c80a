"""Measure the transcoders that ship with mini, and write their card: circuitfind/zoo/mini/transcoders/README.md.

python scripts/mini_transcoders.py
"""

from __future__ import annotations

import json
import sys
from typing import Any

from circuitfind.transcoder_runs import FACTS, Measured, Source, measure_transcoders
from circuitfind.zoo.mini import TRANSCODERS, transcoders_folder
from circuitfind.zoo.mini.corpus import BEHAVIOURS

HEAD = """\
# Transcoders of mini

One for each of its four MLPs: `layer_i` is a folder in the format of sae-lens (`cfg.json`, `sae_weights.safetensors` in
float32). They read what the MLP reads, behind the norm and its weight, and write what it adds to the stream.
{width} features in each, TopK with k = {k}, no skip connection; {steps} steps of {batch} tokens of mini's own corpus, on
a CPU. `training.json` holds all settings. Made, and measured, by

```
circuitfind transcoders train mini --width {width} --k {k} --steps {steps} --lr {lr:g} --out circuitfind/zoo/mini/transcoders
python scripts/mini_transcoders.py
```

FVU is the fraction of the variance of the MLP's output that is not explained; a dead feature never fires on the data. The
other figures are of the model that runs on transcoders, without errors: in one layer, or in all. Recovered is the share
that is kept of what it costs to put the MLP's mean in its place; "-" where that costs too little for a share.
"""


def numbers(found: Measured) -> list[str]:
    """A table of one measurement."""
    titles, rows = found.quality.table()
    lines = ["| " + " | ".join(titles) + " |", "|" + " ---: |" * len(titles)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def card(facts: dict[str, Any], text: Measured, tasks: dict[str, Measured]) -> str:
    """The page."""
    q = text.quality
    parts = [
        HEAD.format(**facts["settings"]),
        f"On {q.tokens:,} tokens of a stream that the training did not see; mini's own cross-entropy is {q.base:.4f}:",
        "",
        *numbers(text),
        "",
        "On the prompts of the nine tasks, with the transcoders of all layers:",
        "",
        "| task | accuracy of mini | of the spliced model | logit difference of mini | spliced | mean-ablated | recovered |",
        "|" + " --- |" + " ---: |" * 6,
    ]
    for name, found in tasks.items():
        q = found.quality
        kept = q.together.recovered(q.base, q.together.mean)
        parts.append(
            f"| {name} | {q.accuracy:.1%} | {q.together.accuracy:.1%} | {q.base:.3f} | {q.together.spliced:.3f} | "
            f"{q.together.mean:.3f} | {'-' if kept is None else f'{kept:.1%}'} |"
        )
    return "\n".join(parts) + "\n"


def main() -> int:
    """Measure, and write the page."""
    folder = str(transcoders_folder())
    facts = json.loads((TRANSCODERS / FACTS).read_text(encoding="utf-8"))
    text = measure_transcoders(folder, "mini", Source())
    tasks = {name: measure_transcoders(folder, "mini", Source(task=name)) for name in BEHAVIOURS}
    (TRANSCODERS / "README.md").write_text(card(facts, text, tasks), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
