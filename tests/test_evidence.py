"""Evidence as a stage of a run: other prompts, two ablations, controls; and what must never be certified."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

import circuitfind
from circuitfind.backup_runs import session_of, settings_of
from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import Circuit, from_mask
from circuitfind.circuit.random import random_circuit
from circuitfind.errors import CircuitfindError
from circuitfind.evidence.certify import certify
from circuitfind.evidence.report import Evidence
from circuitfind.evidence.shuffled import shuffle_pairs
from circuitfind.evidence_controls import _for_model
from circuitfind.evidence_prompts import EvidenceOptions, fresh, held_out
from circuitfind.evidence_stage import gather
from circuitfind.model.node_pass import Patch
from circuitfind.output.store import Store
from circuitfind.session import Session, Silent
from circuitfind.settings import resolve
from circuitfind.summary import Discovery, finished_stages
from circuitfind.task.spec import load_task
from circuitfind.zoo import trained_folder

TASKS = (
    "ioi",
    "subject-verb-agreement",
    "greater-than",
    "gendered-pronoun",
    "capitals",
    "coloured-objects",
    "docstring",
    "induction",
    "successor",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Discovery:
    return circuitfind.discover(
        "gendered-pronoun",
        outputs=tmp_path_factory.mktemp("outputs"),
        formats=(),
        count=32,
        backups=False,
        views=False,
    )


@pytest.fixture(scope="module")
def session(found: Discovery) -> Session:
    run = Store(found.folder.parent).find(str(found.folder))
    made = session_of(run, settings_of(run), "auto", None, Silent())
    made.kept = list(finished_stages(run)["prompts"].facts["kept"])
    return made


def test_a_run_comes_with_its_evidence(found: Discovery) -> None:
    evidence = Evidence.load(found.folder / "evidence.json")
    assert evidence.prompts.held_out
    assert evidence.prompts.aligned >= 30
    assert [one.ablation for one in evidence.measured] == ["resample", "mean"]
    assert {one.name: one.beaten for one in evidence.controls} == {
        "random circuits": True,
        "shuffled pairs": True,
        "shuffled weights": True,
        "cross-task": True,
    }
    assert evidence.parts["by_template"]
    assert [one["ablation"] for one in evidence.parts["as_nodes"]] == ["resample", "mean"]
    assert evidence.parts["as_nodes"][0]["edges"] > evidence.edges
    summary = found.summary["evidence"]
    assert summary["certified"]
    assert summary["verdict"] == str(certify(evidence, min_accuracy=0.75))
    json.dumps(summary, allow_nan=False)


def test_new_prompts_are_new(session: Session) -> None:
    seen = {pair.clean for pair in session.all_pairs}
    new = held_out(session, EvidenceOptions())
    assert new is not None
    assert not seen & {pair.clean for pair in new}
    assert len({pair.clean for pair in new}) == len(new)
    alike = [(pair.group, len(pair.clean)) for pair in new]
    assert all(alike.count(one) > 1 for one in alike), "none is alone, or no mean could be taken"
    again = held_out(session, EvidenceOptions())
    other = held_out(session, EvidenceOptions(seed=2))
    assert again is not None
    assert other is not None
    assert again.content_hash() == new.content_hash() != other.content_hash()


def test_what_is_measured_is_the_circuit_on_these_prompts(found: Discovery, session: Session) -> None:
    options = EvidenceOptions("none")
    evidence = gather(session, found.circuit, options)
    prompts = fresh(session, found.circuit, options)
    for one in evidence.measured:
        again = Evaluator(prompts.runs, one.ablation).evaluate(found.circuit.mask)  # type: ignore[arg-type]
        assert one.faithfulness.value == pytest.approx(again.faithfulness.value, abs=1e-6)
    own = evidence.under("resample")
    assert own is not None
    groups = evidence.parts["by_template"]
    assert sum(g["n_prompts"] for g in groups) == own.n_prompts
    whole = sum(g["n_prompts"] * (g["circuit"] - g["empty"]) for g in groups)
    gap = sum(g["n_prompts"] * (g["full"] - g["empty"]) for g in groups)
    assert whole / gap == pytest.approx(own.faithfulness.value, abs=1e-6), "templates add up to the whole"
    assert evidence.controls == ()


@pytest.mark.parametrize(
    "ablation", ["resample", "mean", "zero", pytest.param("optimal", marks=pytest.mark.slow)]
)
def test_the_full_circuit_is_exactly_1_and_the_empty_one_exactly_0(
    found: Discovery, session: Session, ablation: Any
) -> None:
    prompts = fresh(session, found.circuit, EvidenceOptions(ablations=(ablation,), count=16))
    evaluator = Evaluator(prompts.runs, ablation)
    every = found.circuit.anatomy.edge_mask
    try:
        full, empty = evaluator.each_once([every, np.zeros_like(every)])
    except CircuitfindError as error:
        pytest.skip(error.what)
    assert (full == evaluator.full).all()
    assert (empty == evaluator.empty).all()


def test_as_nodes_all_other_nodes_are_ablated(found: Discovery, session: Session) -> None:
    options = EvidenceOptions("none")
    prompts = fresh(session, found.circuit, options)
    (first, _) = gather(session, found.circuit, options).parts["as_nodes"]
    anatomy = found.circuit.anatomy
    names = {str(node) for node in found.circuit.nodes}
    others = np.array([name not in names for name in anatomy.writer_names])
    # With its input cut too, a node outside the circuit still writes nothing new: the same as ablating it for every reader.
    values = prompts.runs.patched([Patch(nodes=others)])[0]
    empty = Evaluator(prompts.runs, "resample").empty
    full = prompts.runs.clean
    share = (values - empty).mean() / (full - empty).mean()
    assert first["faithfulness"]["value"] == pytest.approx(share, abs=1e-4)


def test_the_full_circuit_is_not_certified(found: Discovery, session: Session) -> None:
    every = from_mask(found.circuit.anatomy, found.circuit.anatomy.edge_mask, found.circuit.conditions)
    verdict = certify(gather(session, every, EvidenceOptions(count=20)))
    assert not verdict.certified
    assert any("random circuits" in one for one in verdict.reasons)


@pytest.mark.slow
def test_random_circuits_and_those_of_other_tasks_are_refused(found: Discovery, session: Session) -> None:
    anatomy, conditions = found.circuit.anatomy, found.circuit.conditions
    rng = np.random.default_rng(0)
    drawn = from_mask(anatomy, random_circuit(anatomy, len(found.circuit.edges), rng), conditions)
    other = circuitfind.discover(
        "subject-verb-agreement",
        outputs=found.folder.parent,
        formats=(),
        count=32,
        backups=False,
        views=False,
        controls="none",
    )
    assert other.summary["evidence"] is None
    chance = certify(gather(session, drawn, EvidenceOptions(count=20)))
    assert not chance.certified
    assert chance.refuted, "other random circuits do as well"
    assert not certify(
        gather(session, replace(other.circuit, conditions=conditions), EvidenceOptions(count=20))
    ).certified


def test_a_task_without_other_prompts_says_so(found: Discovery, tmp_path: Path) -> None:
    spec = load_task("gendered-pronoun")
    pairs = Session(spec, resolve(spec, count=20)).all_pairs
    path = _inline(tmp_path, "few", pairs, 20)
    made = circuitfind.discover(path, outputs=tmp_path, formats=(), backups=False, views=False)
    evidence = Evidence.load(made.folder / "evidence.json")
    assert not evidence.prompts.held_out
    assert any("pruned on" in one for one in made.summary["evidence"]["cautions"])


def test_evidence_is_reused_and_follows_its_circuit(found: Discovery) -> None:
    run = Store(found.folder.parent).find(str(found.folder))
    before = finished_stages(run)["evidence"].key
    again = circuitfind.discover(
        "gendered-pronoun", outputs=found.folder.parent, formats=(), count=32, backups=False, views=False
    )
    assert again.folder == found.folder
    assert finished_stages(Store(found.folder.parent).find(str(found.folder)))["evidence"].key == before
    longer = circuitfind.discover(
        "gendered-pronoun",
        outputs=found.folder.parent,
        formats=(),
        count=32,
        backups=False,
        views=False,
        faithfulness=0.8,
    )
    assert longer.folder != found.folder
    assert longer.summary["evidence"]["faithfulness"] == pytest.approx(0.7)


def _inline(folder: Path, name: str, pairs: Any, count: int) -> Path:
    path = folder / f"{name}.yaml"
    rows = [
        {
            "clean": list(p.clean),
            "corrupted": list(p.corrupted),
            "answer": list(p.answer),
            "wrong": list(p.wrong),
        }
        | ({"group": p.group} if p.group else {})
        for p in pairs
    ]
    task = {"name": name, "min-accuracy": 0.0, "prompts": {"count": count, "pairs": rows}}
    path.write_text(yaml.safe_dump(task))
    return path


# What must not be certified: nothing was learned, or nothing is asked for.


def _certified(task: Any, outputs: Path, **settings: Any) -> bool:
    """Whether a run is certified; one that is refused before has found nothing."""
    try:
        made = circuitfind.discover(
            task, outputs=outputs, formats=(), backups=False, views=False, min_accuracy=0.0, **settings
        )
    except CircuitfindError:
        return False
    return bool(made.summary["evidence"]["certified"])


def _random_weights(seed: int, folder: Path) -> Path:
    source = trained_folder("mini")
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(source))
    model.save_pretrained(folder)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _shuffled_pairs(seed: int, folder: Path, count: int = 64) -> Path:
    spec = load_task(TASKS[seed % len(TASKS)])
    pairs = Session(spec, resolve(spec)).draw(2 * count + 16, seed, drop_bad_pairs=True)
    return _inline(folder, f"shuffled-{seed}", shuffle_pairs(pairs, seed), count)


@pytest.mark.parametrize("seed", [0])
def test_models_with_random_weights_are_not_certified(seed: int, tmp_path: Path) -> None:
    model = _random_weights(seed, tmp_path / "model")
    assert not _certified(TASKS[seed], tmp_path, model=str(model))


@pytest.mark.parametrize("seed", [3])
def test_shuffled_pairs_are_not_certified(seed: int, tmp_path: Path) -> None:
    assert not _certified(_shuffled_pairs(seed, tmp_path, 24), tmp_path)


@pytest.mark.slow
def test_at_most_one_of_twenty_random_models_is_certified(tmp_path: Path) -> None:
    certified = 0
    for seed in range(20):
        model = _random_weights(seed, tmp_path / f"model{seed}")
        certified += _certified(TASKS[seed % len(TASKS)], tmp_path, model=str(model))
    assert certified <= 1


@pytest.mark.slow
def test_at_most_one_of_twenty_shuffled_tasks_is_certified(tmp_path: Path) -> None:
    assert sum(_certified(_shuffled_pairs(seed, tmp_path), tmp_path) for seed in range(20)) <= 1


def test_circuits_are_still_read(found: Discovery) -> None:
    assert Circuit.load(found.folder / "circuit.json").as_dict() == found.circuit.as_dict()


@pytest.mark.slow
def test_optimal_constants_are_those_of_the_run_and_not_of_the_new_prompts(
    found: Discovery, session: Session
) -> None:
    prompts = fresh(session, found.circuit, EvidenceOptions(ablations=("optimal",), count=16))
    assert prompts.runs.constants is not None
    assert prompts.runs.constants is prompts.whole.constants is session.full_runs.constants


def test_token_ids_mean_something_in_one_model_alone() -> None:
    ids, words, text = map(load_task, ("modular-addition", "bracket-classifier", "sentiment"))
    assert not _for_model(ids, "./another")
    assert _for_model(ids, ids.model)
    assert not _for_model(words, "./another")
    assert _for_model(text, "./another")
    assert not _for_model(text, "mini"), "models of the zoo do their own tasks"
    assert _for_model(load_task("ioi"), "mini")
