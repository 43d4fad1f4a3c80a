"""The stage ``views`` of a run: what it writes, what it leaves out and says so, and that the file is read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import circuitfind
from circuitfind import view_stage
from circuitfind.circuit.graph import Circuit
from circuitfind.errors import UsageError
from circuitfind.evidence.breakdown import far_ones, outliers
from circuitfind.model.load import load_model
from circuitfind.output.store import Store
from circuitfind.pipeline import Stages, discover_task
from circuitfind.session import Session, configuration
from circuitfind.settings import resolve
from circuitfind.summary import Discovery, finished_stages, stored, views_stage
from circuitfind.task.spec import load_task
from circuitfind.view_stage import NARROW, WIDE, Extent, extent, look, passes
from circuitfind.views.report import Views
from tests import families
from tests.families import FAMILIES

TASK, COUNT = "ioi-planted", 12


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Discovery:
    """A run with its views."""
    spec = load_task(TASK)
    folder = tmp_path_factory.mktemp("views")
    return discover_task(
        spec, resolve(spec, count=COUNT, method="eap"), outputs=folder, formats=(), controls="none"
    )


@pytest.fixture(scope="module")
def views(made: Discovery) -> Views:
    return Views.load(made.folder / "views.json")


def session_of(made: Discovery, **changes: Any) -> Session:
    """A session of the run's pairs, with other settings."""
    spec = load_task(TASK)
    found = Session(spec, resolve(spec, **{"count": COUNT, "method": "eap", **changes}))
    found.kept = list(
        finished_stages(Store(made.folder.parent).find(made.folder.name))["prompts"].facts["kept"]
    )
    found.__dict__["model"] = load_model(found.settings.model, device="cpu")
    return found


def test_the_file_is_as_its_page_says(made: Discovery, views: Views) -> None:
    data = json.loads((made.folder / "views.json").read_text(encoding="utf-8"))
    assert (data["format"], data["version"]) == ("circuitfind.views", 1)
    assert data["conditions"] == made.circuit.as_dict()["conditions"]
    assert json.loads(json.dumps(views.as_dict())) == data
    assert (data["missing"], data["notes"]) == ({}, [])
    page = (Path(__file__).parents[2] / "docs" / "views-json.md").read_text(encoding="utf-8")
    for keys in (
        data,
        data["effects"],
        data["curve"],
        data["curve"]["random"],
        data["patterns"],
        data["prompts"][0],
    ):
        assert [key for key in keys if f"`{key}`" not in page] == []


def test_effects_and_circuit_are_those_of_the_run(made: Discovery, views: Views) -> None:
    assert views.effects is not None
    assert views.curve is not None
    assert views.effects.nodes == made.circuit.anatomy.writer_names
    (main, *_) = made.circuit.evaluations
    assert views.effects.full == pytest.approx(main.full, rel=1e-6)
    assert views.effects.empty == pytest.approx(main.empty, rel=1e-6)
    for name in ("noising", "denoising"):
        column = getattr(views.effects, name)
        assert column.value[0] == pytest.approx(main.full - main.empty, rel=1e-4), "the input is everything"
        assert len(column.value) == len(column.low) == len(column.high) == len(views.effects.nodes)
    point = views.curve.circuit
    assert (point.edges, point.n_prompts) == (len(made.circuit.edges), COUNT)
    assert point.faithfulness.value == pytest.approx(main.faithfulness.value, rel=1e-5)
    assert point.edges in views.curve.edges
    assert views.curve.edges[-1] == made.circuit.anatomy.n_edges
    assert (views.curve.faithfulness[-1].value, views.curve.completeness[-1].value) == (1, 0)
    band = views.curve.random
    assert band is not None
    assert (band.of, band.count, band.n_prompts) == ("rankings", WIDE.rankings, WIDE.few)
    assert len(band.mean) == len(band.low) == len(band.high) == len(views.curve.edges)
    assert (band.mean[-1], band.low[-1], band.high[-1]) == (1, 1, 1)


def test_prompts_are_the_pairs_of_the_run(made: Discovery, views: Views) -> None:
    assert views.prompts is not None
    lines = [json.loads(line) for line in (made.folder / "prompts.jsonl").read_text().splitlines()]
    assert [row.pair for row in views.prompts] == [i for i, line in enumerate(lines) if line["kept"]]
    for row in views.prompts:
        line = lines[row.pair]
        assert row.clean_metric == pytest.approx(line["metric"], abs=1e-5)
        assert row.where == line["where"]
        assert row.clean == " ".join(map(str, line["clean_tokens"]))
        assert row.corrupted == " ".join(map(str, line["corrupted_tokens"]))
        assert (row.answer, row.wrong) == (str(line["answer"][0]), str(line["wrong"][0]))
        assert row.right
    means = [
        np.mean([getattr(row, name) for row in views.prompts]) for name in ("circuit_metric", "empty_metric")
    ]
    (main, *_) = made.circuit.evaluations
    np.testing.assert_allclose(means, [main.circuit, main.empty], rtol=1e-5)
    corrupted, empty = (
        [getattr(row, f"{name}_metric") for row in views.prompts] for name in ("corrupted", "empty")
    )
    np.testing.assert_allclose(corrupted, empty, atol=1e-4)


def test_patterns_are_of_the_circuits_heads(made: Discovery, views: Views) -> None:
    assert views.patterns is not None
    assert views.effects is not None
    assert set(views.patterns.heads) == {str(head) for head in made.circuit.heads}
    size = {
        name: max(map(abs, pair))
        for name, *pair in zip(
            views.effects.nodes, views.effects.noising.value, views.effects.denoising.value, strict=True
        )
    }
    order = [size[name] for name in views.patterns.heads]
    assert order == sorted(order, reverse=True)
    first, second, *_ = views.patterns.prompts
    assert (first.side, second.side) == ("clean", "corrupted")
    assert (first.pair, first.why) == (second.pair, "typical")
    for i, shown in enumerate(views.patterns.prompts):
        for head in views.patterns.heads:
            pattern = views.patterns.matrix(head, i)
            assert pattern.shape == (len(shown.tokens),) * 2
            np.testing.assert_allclose(pattern.sum(1), 1, atol=len(shown.tokens) / 255)
            assert not np.triu(pattern, 1).any()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short curve."""
    monkeypatch.setattr(view_stage, "WIDE", Extent(None, 4, 2, 3))


# --- the stage ------------------------------------------------------------------------------------------------------


def test_the_stage_is_reused_and_depends_on_the_circuit(
    made: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Store(made.folder.parent).find(made.folder.name)
    stage = views_stage(finished_stages(run))
    assert stage is not None
    assert stage.facts["forward_passes"] > 0
    told = stored(run).summary
    assert told["views"] == {"file": str(made.folder / "views.json"), "missing": {}, "notes": []}
    assert told["views"] == made.summary["views"]
    assert told["forward_passes"] == made.summary["forward_passes"]

    def boom(*args: object, **keys: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("circuitfind.model.load.load_model", boom)
    again = circuitfind.discover(
        TASK, outputs=made.folder.parent, count=COUNT, method="eap", formats=(), controls="none"
    )
    assert again.summary == made.summary
    without = circuitfind.discover(
        TASK, outputs=made.folder.parent, count=COUNT, method="eap", formats=(), controls="none", views=False
    )
    assert without.summary["views"] is None


def test_memory_that_runs_out_is_a_note(
    made: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    class Heard(circuitfind.session.Silent):
        def note(self, text: str) -> None:
            heard.append(text)

    def full(*args: object) -> None:
        raise MemoryError

    session = session_of(made)
    session.reporter = Heard()
    run = Store(tmp_path).open(TASK, session.settings.model, configuration(session))
    monkeypatch.setattr("circuitfind.pipeline.views_of", full)
    with run:
        stages = Stages(session, Store(tmp_path), run, force=False)
        assert stages._views("key", made.circuit, made.scores) is None
    assert heard == ["no views for the report: memory ran out (give --memory, or fewer prompts)"]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"ablation": "mean"}, {"denoising": "denoising puts clean values into a corrupted prompt"}),
        ({"ablation": "zero"}, {"denoising": "denoising puts clean values into a corrupted prompt"}),
        ({"metric": "prob-diff"}, {}),
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_cannot_be_had_is_missing(
    made: Discovery, changes: dict[str, Any], missing: dict[str, str]
) -> None:
    found = look(session_of(made, **changes), made.circuit, made.scores)
    assert found.missing.keys() == missing.keys()
    for name, says in missing.items():
        assert says in found.missing[name]
        assert getattr(found.effects, name) is None
    assert found.effects is not None
    assert found.effects.noising is not None
    assert found.effects.direct_metric == "logit-diff"
    assert found.curve is not None
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.usefixtures("quick")
def test_without_wrong_answers_there_are_no_direct_effects(made: Discovery) -> None:
    session = session_of(made, metric="log-prob")
    pairs = session.all_pairs
    session.__dict__["all_pairs"] = replace(pairs, pairs=tuple(replace(p, wrong=()) for p in pairs))
    found = look(session, made.circuit, made.scores)
    assert found.missing.keys() == {"direct"}
    assert "have no wrong answer" in found.missing["direct"]
    assert found.prompts is not None
    assert found.prompts[0].wrong is None


@pytest.mark.usefixtures("quick")
def test_no_behaviour_leaves_effects_and_prompts(made: Discovery) -> None:
    session = session_of(made)
    pairs = session.all_pairs
    session.__dict__["all_pairs"] = replace(
        pairs, pairs=tuple(replace(p, corrupted=p.clean, corrupted_text=p.clean_text) for p in pairs)
    )
    found = look(session, made.circuit, made.scores)
    assert found.missing.keys() == {"curve"}
    assert found.curve is None
    assert found.effects is not None
    assert found.prompts is not None
    assert not any(row.outlier for row in found.prompts)


@pytest.mark.usefixtures("quick")
def test_a_circuit_without_heads(made: Discovery) -> None:
    few = replace(
        made.circuit, edges=tuple(e for e in made.circuit.edges if str(e) == "input->logits"), evaluations=()
    )
    found = look(session_of(made), few, made.scores)
    assert found.missing.keys() == {"patterns"}
    assert "no head is in the circuit" in found.missing["patterns"]


def test_less_is_run_in_a_large_model(made: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    assert extent(made.circuit.anatomy) is WIDE
    monkeypatch.setattr(view_stage, "LARGE", 1)
    monkeypatch.setattr(view_stage, "NARROW", Extent(5, 4, 2, 3))
    session = session_of(made)
    found = look(session, made.circuit, made.scores)
    assert found.effects is not None
    assert found.curve is not None
    assert found.curve.random is not None
    assert found.prompts is not None
    assert (found.effects.n_prompts, found.curve.n_prompts, found.curve.circuit.n_prompts) == (5, 5, COUNT)
    assert (found.curve.random.count, found.curve.random.n_prompts) == (2, 3)
    assert len(found.prompts) == COUNT
    assert found.effects.full == pytest.approx(
        np.mean([row.clean_metric for row in found.prompts[:5]]), rel=1e-5
    )
    assert "first 5 of 12 pairs" in found.notes[0]
    assert session.passes()["work"] > 0
    nodes, circuits = passes(made.circuit.anatomy, COUNT, "resample")
    assert nodes == pytest.approx(2 * len(made.circuit.anatomy.writers) * 5 / 12)
    assert circuits == pytest.approx(3 + 4 * (2 * 5 / 12 + 2 * 3 / 12))
    assert passes(made.circuit.anatomy, COUNT, "mean")[0] == len(made.circuit.anatomy.writers)
    assert NARROW.prompts is not None


@pytest.mark.parametrize(
    "damage",
    [lambda d: d.pop("curve"), lambda d: d["prompts"][0].pop("where"), lambda d: d.update(version=2)],
)
def test_a_damaged_file_is_refused(views: Views, damage: Callable[[Any], Any]) -> None:
    data = json.loads(json.dumps(views.as_dict()))
    damage(data)
    with pytest.raises(UsageError, match="views file") as caught:
        Views.from_dict(data, where="x/views.json")
    later = data["version"] != views.as_dict()["version"]
    assert ("update circuitfind" if later else "--force") in str(caught.value.hint)


def test_outliers_are_the_far_ones() -> None:
    full, empty = np.full(9, 2.0), np.zeros(9)
    values = np.array([1.9, 2.0, 2.1, 1.95, 2.05, 1.9, 2.1, 2.0, -6.0])
    (far,) = far_ones(values, full, empty)
    assert (far.index, far.miss) == (8, pytest.approx(-4))
    (told,) = outliers(values, full, empty, list("abcdefghi"), ["w"] * 9)
    assert (told["prompt"], told["miss"], told["z"]) == ("i", far.miss, far.z)
    assert far_ones(full, full, empty) == []


@pytest.mark.parametrize("family", ["attn-only", "kv-groups"])
def test_other_shapes_of_models(family: str, tmp_path: Path) -> None:
    """No MLPs; key/value heads that are shared."""
    assert family in FAMILIES
    model = families.model(family)
    pairs = [
        {"clean": list(p.clean), "corrupted": list(p.corrupted), "answer": p.answer[0], "wrong": p.wrong[0]}
        for p in families.pairs_for(model, count=10)
    ]
    path = tmp_path / "task.yaml"
    path.write_text(
        json.dumps(
            {
                "name": "t",
                "model": str(families.folder(family)),
                "min-accuracy": 0,
                "prompts": {"pairs": pairs},
            }
        )
    )
    spec = load_task(path)
    settings = resolve(spec, method="activation-patching", edges=12, backups=False)
    try:
        found = discover_task(spec, settings, outputs=tmp_path, formats=(), controls="none")
    except circuitfind.CircuitfindError as error:
        pytest.skip(f"these random weights do not do the task: {error.what}")
    views = Views.load(found.folder / "views.json")
    assert views.patterns is not None
    assert set(views.patterns.heads) == {str(h) for h in found.circuit.heads}
    assert views.effects is not None
    np.testing.assert_allclose(views.effects.noising.value, found.scores.values, rtol=1e-4, atol=1e-5)
    assert isinstance(found.circuit, Circuit)


# --- neurons and features ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_units_have_effects_of_their_own_and_names(tmp_path: Path) -> None:
    words: dict[str, Any] = {"nodes": "heads,neurons", "count": 16, "outputs": tmp_path, "backups": False}
    found = circuitfind.discover("neuron-lookup", formats=(), controls="none", **words)
    views = Views.load(found.folder / "views.json")
    assert views.missing.keys() <= {"patterns"}
    effects = views.effects
    assert effects is not None
    assert effects.nodes == found.circuit.anatomy.writer_names
    units = [str(node) for node in found.circuit.units]
    assert units
    size = {name: abs(value) for name, value in zip(effects.nodes, effects.noising.value, strict=True)}
    assert min(size[name] for name in units) > max(
        size[name] for name in effects.nodes if name.endswith(".rest")
    )
    full = sum(effects.direct.value) + effects.direct_rest
    assert full == pytest.approx(effects.full, rel=1e-4)
    named = found.folder / "names.json"
    assert {node["name"] for node in json.loads(named.read_text(encoding="utf-8"))["nodes"]} == set(units)
    written = named.stat().st_mtime_ns
    circuitfind.discover("neuron-lookup", formats=(), controls="none", **words)
    assert named.stat().st_mtime_ns == written, "what is named already is left as it is"
    other = circuitfind.discover(
        "neuron-lookup",
        formats=(),
        controls="none",
        names=False,
        views=False,
        **{**words, "outputs": tmp_path / "b"},
    )
    assert not (other.folder / "names.json").exists()
    assert not (other.folder / "views.json").exists()
