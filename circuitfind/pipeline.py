"""From a task to a verified circuit: the stages, in order, each reused when nothing that it depends on has changed.

    prompts    draw and align the pairs, run the clean prompts, leave out those that the model answers wrongly
    scores     run the method
    circuit    prune, evaluate under two ablations
    backups    find what stands in when heads are removed, and what the circuit leaves without it
    evidence   measure the circuit on prompts that it was not pruned on, and hold it against controls
    views      compute what a report shows beside: effects of every node, curves, attention, every prompt
    pictures   draw

The model is loaded when a stage needs it and not before; a run whose stages are all finished loads nothing. Torch is
imported with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.backup_stage import Made, circuit_text, look, refused
from circuitfind.circuit.graph import Circuit, Conditions, from_mask
from circuitfind.circuit.scores import Scores
from circuitfind.config import DEFAULT_CONTROLS, Controls
from circuitfind.cross_stage import score_across
from circuitfind.errors import CircuitfindError, UsageError
from circuitfind.evidence_prompts import EvidenceOptions
from circuitfind.evidence_stage import evidence_of
from circuitfind.known import compare_with_known, known_edges, known_roles
from circuitfind.output.dot import to_dot
from circuitfind.output.draw import dot_binary, install_hint, render
from circuitfind.output.report.write import renew_report
from circuitfind.output.store import Run, Stage, Store, stage_key
from circuitfind.output.words import picture_key, words_or_none
from circuitfind.prompt_stage import draw_prompts
from circuitfind.session import Foresees, Reporter, Session, Silent, configuration, stage_keys, task_hash
from circuitfind.settings import BackupOptions, Settings
from circuitfind.staging import carry_out, record_device
from circuitfind.summary import Discovery, circuit_file, summarise
from circuitfind.task.spec import TaskSpec
from circuitfind.unit_stage import score_units
from circuitfind.view_stage import views_key, views_of

if TYPE_CHECKING:
    from circuitfind.methods.base import Method
    from circuitfind.model.bridge import Model
    from circuitfind.model.runs import Runs

STAGES = ("prompts", "scores", "circuit", "backups", "evidence", "views", "pictures")


def discover_task(
    spec: TaskSpec,
    settings: Settings,
    *,
    outputs: Path | str | None = None,
    device: str = "auto",
    force: bool = False,
    formats: tuple[str, ...] = ("svg",),
    memory: int | None = None,
    controls: Controls = DEFAULT_CONTROLS,
    reporter: Reporter | None = None,
    lend: Callable[[str], Model] | None = None,
    views: bool = True,
) -> Discovery:
    """Run what is not finished yet and return the circuit.

    Args:
        spec: The task.
        settings: What ``settings.resolve`` made of flags and task.
        outputs: Folder of run folders.
        device: Where the model runs.
        force: Run every stage again.
        formats: Pictures to draw; empty for none.
        memory: Bytes to plan for; what is free if None.
        controls: How thoroughly the circuit is held against controls; ``none`` for no evidence beyond its own prompts.
        reporter: Hears of progress.
        lend: Gives the model, with no passes counted yet; it is loaded if None.
        views: Whether to compute what a report shows beside the circuit.
    """
    if settings.nodes == "features":
        raise UsageError(
            "features alone make no circuit of heads and edges but a feature graph",
            hint='use circuitfind.feature_runs.discover_features, or nodes="heads,features"',
        )
    known_edges(spec, settings)  # a list of true edges that cannot be read is told before the work
    session = Session(spec, settings, device, reporter or Silent(), memory=memory, lend=lend)
    store = Store(outputs)
    run = store.open(spec.name, settings.model, configuration(session))
    with run:
        found = Stages(session, store, run, force=force).all(formats, controls, views=views)
    report = renew_report(run, session.reporter.note)  # when the manifest says how the run ended
    return replace(found, summary={**found.summary, "report": None if report is None else str(report)})


class Stages:
    """The stages of one run, each with the key of everything that it depends on."""

    def __init__(self, session: Session, store: Store, run: Run, *, force: bool) -> None:
        self.session, self.store, self.run, self.force = session, store, run, force
        self.reporter = session.reporter
        session.hands.plans = run.plans()

    def all(
        self, formats: tuple[str, ...], controls: Controls = DEFAULT_CONTROLS, *, views: bool = False
    ) -> Discovery:
        keys = stage_keys(self.session)
        if isinstance(self.reporter, Foresees):
            self.reporter.foresee(self.session, self.wanted(formats, controls, views=views))
        prompts = self.prompts(keys["prompts"])
        facts = prompts.facts
        scores_stage = self.stage("scores", keys["scores"], self._scores)
        scores = Scores.load(scores_stage.files["scores.npz"])
        circuit_stage = self.stage("circuit", keys["circuit"], lambda: self._circuit(scores, facts))
        stages = {"prompts": prompts, "scores": scores_stage, "circuit": circuit_stage}
        last = "circuit"
        if self.session.settings.backups:
            found = self._backups(keys["backups"], circuit_stage, scores)
            stages, last = (stages, last) if found is None else ({**stages, "backups": found}, "backups")
        if last == "circuit":
            self._write_circuit(circuit_stage)
        circuit = Circuit.load(circuit_file(stages))
        if controls != "none" and self.session.settings.model_b is None:  # they are controls of a behaviour
            found = self._evidence(keys[last], circuit, EvidenceOptions(controls))
            stages = stages if found is None else {**stages, "evidence": found}
        if views:
            found = self._views(keys[last], circuit, scores)
            stages = stages if found is None else {**stages, "views": found}
        pictures = self.pictures(circuit, formats, stage_key(keys[last], formats))
        self.record_device()
        return Discovery(circuit, self.run.path, summarise(circuit, stages, pictures, self.run.path))

    def wanted(self, formats: tuple[str, ...], controls: Controls, *, views: bool) -> list[str]:
        """The stages that ``all`` runs."""
        settings = self.session.settings
        asked = {
            "backups": settings.backups,
            "evidence": controls != "none" and settings.model_b is None,
            "views": views,
            "pictures": bool(formats),
        }
        return [name for name in STAGES if asked.get(name, True)]

    def prompts(self, key: str) -> Stage:
        """The pairs that the model answers rightly, for the stages that follow."""
        self.run.record(
            hashes=_hashes(self.session),
            seeds={"prompts": self.session.settings.seed, "bootstrap": 0},
        )
        if self.session.spec.path is not None:
            self.run.record(task_file=str(self.session.spec.path.resolve()))
        stage = self.stage("prompts", key, lambda: draw_prompts(self.session))
        self.session.kept = list(stage.facts["kept"])
        self.run.record(hashes={"prompts": stage.facts["content_hash"]})
        return stage

    def backups(
        self,
        key: str,
        options: BackupOptions,
        circuit: Circuit | None = None,
        scores: Scores | None = None,
    ) -> Stage:
        """What stands in when components are removed.

        Raises:
            CircuitfindError: The search refuses.
        """
        return self.stage("backups", key, lambda: look(self.session, options, circuit, scores))

    def _backups(self, key: str, pruned: Stage, scores: Scores) -> Stage | None:
        """The same, where a refusal is a note; None where memory ran out, which may go better the next time."""
        circuit = Circuit.load(circuit_file({"circuit": pruned}))

        def work() -> Made:
            try:
                return look(self.session, BackupOptions(), circuit, scores)
            except CircuitfindError as error:
                self.reporter.note(f"not searched for backups: {error.what}")
                return refused(circuit, error)

        return self._if_memory_allows("backups", key, work, "not searched for backups")

    def _evidence(self, of: str, circuit: Circuit, options: EvidenceOptions) -> Stage | None:
        """What speaks for the circuit; None where memory ran out."""

        def work() -> Made:
            made, facts = evidence_of(self.session, circuit, options)
            return made, {**facts, "of": of}

        return self._if_memory_allows("evidence", evidence_key(of, options), work, "no evidence gathered")

    def _views(self, of: str, circuit: Circuit, scores: Scores) -> Stage | None:
        """What a report shows beside the circuit; None where memory ran out."""

        def work() -> Made:
            made, facts = views_of(self.session, circuit, scores)
            return made, {**facts, "of": of}

        return self._if_memory_allows("views", views_key(of), work, "no views for the report")

    def _if_memory_allows(self, name: str, key: str, work: Callable[[], Made], without: str) -> Stage | None:
        try:
            return self.stage(name, key, work)
        except (RuntimeError, MemoryError) as error:
            from circuitfind.model.memory import out_of_memory

            if not out_of_memory(error):
                raise
            self.reporter.note(f"{without}: memory ran out (give --memory, or fewer prompts)")
            return None

    def _write_circuit(self, pruned: Stage) -> None:
        """``circuit.json`` of a run without backups, unless a search that was asked for later has written it."""
        text = pruned.read(circuit_file({"circuit": pruned}).name)
        path = self.run.path / "circuit.json"
        if "backups" not in self.run.manifest["stages"] and (not path.is_file() or path.read_bytes() != text):
            self.run.write("circuit.json", text)

    def record_device(self) -> None:
        """Where the model ran, if it did."""
        record_device(self.session, self.run)

    def stage(self, name: str, key: str, work: Callable[[], Made]) -> Stage:
        found = None if self.force else self.run.stage(name, key)
        if found is not None:
            self.reporter.stage(name, "reused", "nothing that it depends on has changed")
            return found
        elsewhere = None if self.force else self.store.finished(name, key, but=self.run.path)
        if elsewhere is not None:
            self.reporter.stage(name, "reused", "from a run that differs only in later stages")
            files: dict[str, bytes | str] = {
                file: path.read_bytes() for file, path in elsewhere.files.items()
            }
            return self.run.finish_stage(name, key, files, elsewhere.facts)
        return carry_out(self.session, self.run, name, key, work, fresh=self.force)

    # Each returns files and facts.

    def _scores(self) -> Made:
        files, facts = self._scored()
        # For exports, which load no model.
        return files, {**facts, "d_model": self.session.runs.model.d_model}

    def _scored(self) -> Made:
        from circuitfind.methods import get_method

        session, settings = self.session, self.session.settings
        method = get_method(settings.method, settings.options)
        if settings.units:
            return score_units(session, method)
        if settings.model_b is not None:
            return score_across(session, method)
        with session.in_precision():
            scores = self._run(method, session.runs)
        facts = {"level": scores.level, **scores.facts}
        if settings.precision != "fp32":
            facts["precision_check"] = self._precision_check(method)
        return {"scores.npz": scores.to_bytes()}, facts

    def _run(self, method: Method, runs: Runs) -> Scores:
        from circuitfind.methods.finite import checked

        settings = self.session.settings
        found = method.run(
            runs, ablation=settings.ablation, direction=settings.direction, positions=settings.positions
        )
        return checked(found, runs.model)

    def _precision_check(self, method: Method) -> dict[str, Any]:
        """Score a few pairs in both precisions, and say how far the scores agree."""
        from circuitfind.methods.agreement import ENOUGH, agreement, few

        session, precision = self.session, self.session.settings.precision
        kept = session.all_pairs.subset(session.kept)
        some = kept.subset(few(kept))
        runs = session.runs_of(some), session.runs_of(some)
        for one in runs:
            one.constants = session.runs.constants
        with session.in_precision():
            low = self._run(method, runs[0])
        found = agreement(low, self._run(method, runs[1]))
        same = f"{found['overlap']:.0%} of the {found['k']} strongest are the same on {len(some)} pairs"
        advice = "" if found["overlap"] >= ENOUGH else ": too few to trust; use --precision fp32"
        self.reporter.note(f"scored in {precision}, not in fp32: {same}{advice}")
        return {"precision": precision, "pairs": len(some), **found}

    def _circuit(self, scores: Scores, prompts: Mapping[str, Any]) -> Made:
        from circuitfind.circuit.evaluate import Evaluator, evaluate_twice
        from circuitfind.circuit.prune import prune

        session, settings = self.session, self.session.settings
        split = scores.anatomy.split
        evaluator = Evaluator(session.runs_for(scores.anatomy) if split else session.runs, settings.ablation)
        with session.in_precision():
            pruned = prune(
                scores,
                settings.rule,
                evaluator,
                direction=settings.direction,
                report=lambda text: self.reporter.stage("circuit", "running", text),
            )
        runs = session.runs_for(scores.anatomy)
        if runs is not evaluator.runs:  # what is told of a circuit is measured in single precision
            evaluator = Evaluator(runs, settings.ablation)
        evaluations, notes = evaluate_twice(evaluator, pruned.mask)
        conditions = Conditions(
            task=session.spec.name,
            model=settings.model,
            method=settings.method_label,
            metric=settings.metric,
            ablation=settings.ablation,
            direction=settings.direction,
            counterfactual="model B" if settings.model_b else prompts["counterfactual"],
            rule=str(settings.rule),
            nodes=settings.nodes,
            dictionaries=settings.dictionaries or "",
            errors=settings.errors if "features" in settings.nodes else "",
            model_b=settings.model_b or "",
        )
        circuit = from_mask(
            scores.anatomy,
            pruned.mask,
            conditions,
            edge_values=scores.values if scores.level == "edge" else None,
            node_values=scores.node_values,
            evaluations=evaluations,
            roles=known_roles(session.spec, settings.model),
        )
        facts = {
            "prefix": pruned.prefix,
            "minimal": pruned.minimal,
            "evaluations": pruned.evaluations,
            "notes": notes,
            "known": None if settings.model_b else compare_with_known(session.spec, settings, circuit),
        }
        return {"pruned.json": circuit_text(circuit)}, facts

    def pictures(self, circuit: Circuit, formats: tuple[str, ...], key: str) -> list[Path]:
        """Draw a circuit; without Graphviz, its DOT text."""
        if not formats:
            return []
        words, problem = words_or_none(self.run)
        if problem is not None:
            self.reporter.note(problem)
        if dot_binary() is None:
            path = self.run.write("circuit.dot", to_dot(circuit, words=words))
            self.reporter.note(f"no picture drawn: Graphviz's 'dot' is missing ({install_hint()})")
            return [path]

        def draw() -> Made:
            text = to_dot(circuit, words=words)
            files: dict[str, bytes | str] = {"circuit.dot": text}
            for path in render(text, self.run.path / "circuit", formats):
                files[path.name] = path.read_bytes()
            return files, {}

        stage = self.stage("pictures", picture_key(key, words), draw)
        return [stage.files[f"circuit.{name}"] for name in formats]


def evidence_key(before: str, options: EvidenceOptions) -> str:
    """What evidence depends on: the circuit, and what is measured."""
    return stage_key(before, "evidence", options.as_dict())


def _hashes(session: Session) -> dict[str, str]:
    """Of what a run is made from."""
    found = {"task": task_hash(session.spec), "model": session.identity}
    found |= {} if session.identity_b is None else {"model_b": session.identity_b}
    dictionaries = session.dictionaries_hash
    return found if dictionaries is None else {**found, "dictionaries": dictionaries}
