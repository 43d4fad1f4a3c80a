"""A Python script that rebuilds a circuit with TransformerLens hooks and measures it; it needs nothing of this program.

The text is ``hooks.py.txt`` with the circuit and its prompts put in.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import circuitfind
from circuitfind import zoo
from circuitfind.circuit.graph import Circuit, Evaluation
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.identity import model_folder
from circuitfind.names import SLOTS
from circuitfind.output.exports.form import Exported, Source
from circuitfind.reading import read_json

CARRIES = {
    "resample": "what that writer writes on the corrupted prompt",
    "zero": "nothing: zero in the place of what its writer writes",
}
"""By ablation that the script can do, what cut edges carry."""
METRICS = {
    "logit-diff": "    return logits[answer].logsumexp(0) - logits[wrong].logsumexp(0)",
    "prob-diff": "    p = logits.softmax(0)\n    return p[answer].sum() - p[wrong].sum()",
    "log-prob": "    return logits.log_softmax(0)[answer].logsumexp(0)",
    "kl": "    p, q = clean_logits.log_softmax(0), logits.log_softmax(0)\n    return -(p.exp() * (p - q)).sum()",
    "accuracy": "    return (logits[answer].logsumexp(0) > logits[wrong].logsumexp(0)).double()",
}
_TEMPLATE = "hooks.py.txt"


def python(source: Source) -> Exported:
    """The script, with the pairs that the circuit was found on.

    Raises:
        UsageError: The prompts are not known.
        UnsupportedError: The circuit has neurons, features or positions, or no ablation that the script can do.
    """
    circuit = source.circuit("python")
    _check(circuit)
    if not source.prompts:
        raise UsageError(
            "the script runs the prompts that the circuit was found on, and this file does not have them",
            hint="export the run, or keep the file in the run's folder",
        )
    ablation, found, notes = _ablation(circuit)
    conditions = circuit.conditions
    metric = found.metric if found else conditions.metric
    if metric not in METRICS:
        raise UnsupportedError(f"the script knows no metric '{metric}'", hint=f"known: {', '.join(METRICS)}")
    lines, needs = _load(conditions.model)
    # A measured value stands only where the file says that it is of these prompts.
    measured = found if found and found.n_prompts == len(source.prompts) else None
    values = {
        "TITLE": _doc(f"The circuit for {conditions.task} in {conditions.model}, by {conditions.method}."),
        "VERSION": circuitfind.__version__,
        "NEEDS": needs,
        "WHAT": _doc(f"{len(circuit.edges)} edges, pruned to {conditions.rule}."),
        "CARRIES": CARRIES[ablation],
        "MODEL": _literal(conditions.model),
        "PARALLEL": str(circuit.anatomy.parallel),
        "HAS_MLP": str(circuit.anatomy.has_mlp),
        "EDGES": "\n".join(f"    {_literal(str(edge))}," for edge in circuit.edges),
        "PROMPTS": "\n".join(f"    {_row(row)}," for row in source.prompts),
        "LOAD": lines,
        "METRIC_NAME": metric,
        "METRIC": METRICS[metric],
        "KIND": repr({slot: "kv" if circuit.anatomy.grouped and slot != "q" else "h" for slot in SLOTS}),
        "CUT": "" if ablation == "resample" else _ZERO,
        "ABLATION": ablation,
        "MEASURED": f" (circuitfind measured {measured.faithfulness.value:.6f})" if measured else "",
    }
    text = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    # All at once, so that no value is looked through for the place of another.
    text = re.sub(r"@@(\w+)@@", lambda found: values[found[1]], text)
    counts = {"nodes": len(circuit.nodes), "edges": len(circuit.edges), "prompts": len(source.prompts)}
    return Exported({".py": text.replace("\n\n\n        logits", "\n        logits")}, counts, tuple(notes))


_ZERO = "        cut = {name: torch.zeros_like(value) for name, value in cut.items()}"


def _check(circuit: Circuit) -> None:
    conditions = circuit.conditions
    why = None
    if circuit.anatomy.split:
        why = "neurons or features are nodes of its own"
    elif any(node.position for node in circuit.nodes):
        why = "positions are kept apart"
    elif conditions.model_b:
        why = "its cut edges carry the values of another model"
    if why is not None:
        raise UnsupportedError(
            f"the script runs circuits of heads and MLPs, and in this one {why}",
            hint="measure it with `circuitfind evaluate`, or export it as node-link or csv",
        )


def _ablation(circuit: Circuit) -> tuple[str, Evaluation | None, list[str]]:
    """What cut edges carry: as when the circuit was found, or in its other measurement, where a script can do that."""
    own = circuit.conditions.ablation
    by_name = {one.ablation: one for one in circuit.evaluations}
    chosen = next((name for name in (own, *by_name) if name in CARRIES), None)
    if chosen is None:
        raise UnsupportedError(
            f"the script cannot ablate by {own or 'an ablation that is not told'}",
            hint="measure the circuit by resample or zero too: circuitfind discover ... --ablation resample",
        )
    notes = (
        []
        if chosen == own
        else [f"the script ablates by {chosen}: a {own} ablation needs the task's templates"]
    )
    return chosen, by_name.get(chosen), notes


def _load(model: str) -> tuple[str, str]:
    """The lines that load a model, and what else they need."""
    if zoo.is_planted(model) or _is_tl(model) or _without_tokenizer(model_folder(model)):
        lines = "    from circuitfind.model.load import load_model\n\n    return load_model(MODEL, device='cpu').bridge"
        return lines, ", and circuitfind, which loads the model"
    if model in zoo.TRAINED:
        lines = (
            "    from circuitfind.zoo import trained_folder\n\n"
            "    return TransformerBridge.boot_transformers(str(trained_folder(MODEL)), device='cpu')"
        )
        return lines, ", and circuitfind, with which the model comes"
    folder = model_folder(model)
    named = f"{_literal(str(folder.absolute()))}" if folder.is_dir() else "MODEL"
    return f"    return TransformerBridge.boot_transformers({named}, device='cpu')", ""


def _without_tokenizer(folder: Path) -> bool:
    """Whether a folder has no tokenizer, without which TransformerLens does not load it by its name."""
    return folder.is_dir() and not any(folder.glob("tokenizer*"))


def _is_tl(model: str) -> bool:
    """Whether a folder is in TransformerLens format."""
    path: Path = model_folder(model) / "config.json"
    try:
        return bool(read_json(path, words=True).get("format") == "transformer-lens")
    except (OSError, ValueError, AttributeError):
        return False


def _row(row: Any) -> str:
    return repr(
        (
            list(map(int, row["clean_tokens"])),
            list(map(int, row["corrupted_tokens"])),
            list(map(int, row["answer"])),
            list(map(int, row["wrong"])),
            int(row["answer_position"]),
        )
    )


def _literal(text: str) -> str:
    """Text as a Python literal in double quotes; what is no ASCII is escaped."""
    return json.dumps(text)


def _doc(text: str) -> str:
    """Text as it may stand in a docstring."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("'''", "")
