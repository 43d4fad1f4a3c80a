"""A run as one side of a comparison."""

from __future__ import annotations

from circuitfind.circuit.compare import Side
from circuitfind.output.store import Run
from circuitfind.summary import Found, stored


def side_of(run: Run, found: Found | None = None) -> Side:
    """Its circuit and all its scores, and in short what else it was found under.

    Args:
        run: The run.
        found: What ``stored`` gives of it, where that is known already.

    Raises:
        RunError: It has no circuit, or its files were changed.
    """
    found = found or stored(run)
    manifest, prompts = run.manifest, found.summary["prompts"]
    hashes, left = manifest["hashes"], prompts["answered_wrongly"]
    drawn = f"{prompts['used']} used" + (f", {left} answered wrongly" if left else "")
    facts = {
        "weights": _short(hashes.get("model")),
        **({"weights of B": _short(hashes["model_b"])} if "model_b" in hashes else {}),
        "task file": _short(hashes.get("task")),
        "prompts": f"{drawn} (seed {manifest['seeds'].get('prompts')}, {_short(hashes.get('prompts'))})",
        "circuitfind": str(manifest["config"].get("version", "")),
    }
    return Side(run.name, found.circuit, found.scores, facts)


def _short(digest: str | None) -> str:
    return "unknown" if not digest else digest[:8]
