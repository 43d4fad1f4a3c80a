"""How well what was found agrees with what is known: precision, recall and ROC-AUC, where a task expects them."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import TYPE_CHECKING

from circuitfind.check.reasons import Reason, brief, some
from circuitfind.task.findings import Expect, Known

if TYPE_CHECKING:
    from circuitfind.session import Session
    from circuitfind.summary import Discovery

KINDS = ("edges", "heads", "mlps")
"""What a known circuit is compared by: the first of these that it names."""


def judge_known(session: Session, found: Discovery, expect: Expect) -> Iterator[Reason]:
    """What of it does not hold.

    Raises:
        UsageError: The known circuit names what the model cannot have.
    """
    limits = {"precision": expect.precision, "recall": expect.recall, "roc_auc": expect.roc_auc}
    asked = [name.replace("roc_auc", "ROC-AUC") for name, limit in limits.items() if limit is not None]
    if not asked:
        return
    from circuitfind.evidence.against import against

    known = known_circuit(session, expect.against)
    if known is None:
        named = f"named '{expect.against}'" if expect.against else "to compare with"
        text = f"no circuit of {session.settings.model} is known {named}, but {some(asked)} is expected"
        yield Reason("edges", "expectation", text)
        return
    compared = against(found.scores, found.circuit, known)
    match = next(one for kind in KINDS if (one := compared.of(kind)) is not None)
    lines = [f"missing {some(one.name for one in match.missing)}"] if match.missing else []
    lines += [f"extra {some(match.extra)}"] if match.extra else []
    for name, limit in limits.items():
        value = getattr(match, name)
        if limit is not None and not limit.holds(value):
            told = "none" if isnan(value) else brief(value)
            kind, word = ("scores", "ROC-AUC") if name == "roc_auc" else ("edges", name)
            text = f"the {word} over the known {match.kind} is {told}, expected {limit.words}"
            yield Reason(kind, "expectation", text, tuple(lines))  # type: ignore[arg-type]  # two of them


def known_circuit(session: Session, name: str | None) -> Known | None:
    """The known circuit of a name; without one what is true of a planted model, what the task lists first, or what is in the
    model's folder; None where nothing is.
    """
    from circuitfind.evidence.listed import truth_of_planted
    from circuitfind.evidence.truth import truth_of_folder
    from circuitfind.model.identity import model_folder
    from circuitfind.zoo import is_planted

    settings = session.settings
    if name is None and is_planted(settings.model):
        found: Known | None = truth_of_planted(settings.model, settings.ablation, settings.nodes)
    else:
        found = next(iter(session.spec.known_of(settings.model, name)), None)
        if found is None and name is None:
            found = truth_of_folder(model_folder(settings.model), settings.ablation)
    return found if found is not None and (found.edges or found.nodes) else None
