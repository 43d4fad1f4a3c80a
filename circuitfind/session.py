"""What the stages of one run share: the model, loaded when first asked for, the pairs, the keys of the stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import circuitfind
from circuitfind.config import SCHEMA_VERSION
from circuitfind.engine.chosen import engine
from circuitfind.engine.hands import EngineHands
from circuitfind.model.identity import identity
from circuitfind.output.kept import Keeping
from circuitfind.output.store import stage_key
from circuitfind.settings import BackupOptions, Settings
from circuitfind.task.spec import TaskSpec

if TYPE_CHECKING:
    from circuitfind.dictionaries.dictionary import Dictionary
    from circuitfind.model.anatomy import Anatomy
    from circuitfind.model.bridge import Model
    from circuitfind.model.memory import MemoryPlan
    from circuitfind.model.runs import Runs
    from circuitfind.task.pairs import PromptPairs
    from circuitfind.units.find import Split


class Reporter(Protocol):
    """Hears what the pipeline does. The command line shows it; the Python API is silent."""

    def stage(self, name: str, state: str, detail: str = "") -> None:
        """A stage is ``running``, ``finished`` or ``reused``."""

    def progress(self, rows: int) -> None:
        """So many patched rows more are done."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


@runtime_checkable
class Foresees(Protocol):
    """A reporter that is also told what is to come."""

    def foresee(self, session: Session, stages: Sequence[str]) -> None:
        """The stages of a run, in order, before the first one."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, name: str, state: str, detail: str = "") -> None: ...

    def progress(self, rows: int) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class Session:
    """What the stages of one run share; loads the model when first asked for it."""

    spec: TaskSpec
    settings: Settings
    device: str = "auto"
    reporter: Reporter = field(default_factory=Silent)
    known_identity: str | None = None
    memory: int | None = None
    """Bytes to plan for beyond the model's weights; what is free if None. It changes no result but by rounding."""
    lend: Callable[[str], Model] | None = None
    """Gives the model of a name, with no passes counted yet, in place of loading one."""
    hands: Keeping = field(default_factory=Keeping)
    """Do the pieces of all runs here, and keep what they give in the journal of the stage that runs."""
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        chosen = engine()
        if chosen is not None:
            self.hands.inner = EngineHands(chosen, self.device, self._note_once)

    @cached_property
    def identity(self) -> str:
        """Hash of the model's weights."""
        return self.known_identity or identity(self.settings.model) or self.model.fingerprint

    @cached_property
    def model(self) -> Model:
        from circuitfind.model.load import load_model

        if self.lend is not None:
            return self.lend(self.settings.model)
        found = load_model(self.settings.model, device=self.device)
        if found.placement is not None:
            self._note_once(found.placement.told())
        return found

    @cached_property
    def model_b(self) -> Model | None:
        """The model that replaced parts carry values of, where the settings name one."""
        from circuitfind.model.load import load_model

        return (
            None if self.settings.model_b is None else load_model(self.settings.model_b, device=self.device)
        )

    @cached_property
    def identity_b(self) -> str | None:
        """Hash of its weights."""
        if self.settings.model_b is None:
            return None
        return identity(self.settings.model_b) or (self.model_b.fingerprint if self.model_b else None)

    @cached_property
    def all_pairs(self) -> PromptPairs:
        """Every pair that lines up, rightly answered or not."""
        return self.draw(self.settings.count, self.settings.seed, drop_bad_pairs=self.settings.drop_bad_pairs)

    def draw(self, count: int | None, seed: int, *, drop_bad_pairs: bool) -> PromptPairs:
        """Pairs of the task for this model, drawn from a seed."""
        from circuitfind.task.prompts import make_pairs
        from circuitfind.zoo import is_planted

        zoo_pairs = None
        if self.spec.prompts.zoo is not None and is_planted(self.settings.model):
            from circuitfind.model.load import planted

            zoo_pairs = planted(self.settings.model).pairs(count or 64, seed)
        return make_pairs(
            self.spec,
            self.model.tokenizer,
            counterfactual=self.settings.counterfactual,
            count=count,
            seed=seed,
            drop_bad_pairs=drop_bad_pairs,
            zoo_pairs=zoo_pairs,
            n_vocab=self.model.n_vocab,
        )

    def runs_of(
        self,
        pairs: PromptPairs,
        metric: str | None = None,
        *,
        model: Model | None = None,
        edges: bool = True,
    ) -> Runs:
        """Runs of some pairs, in another metric or model than those of the settings where one is named.

        ``edges`` says whether passes over edges are planned for.
        """
        from circuitfind.model.runs import Runs
        from circuitfind.task.metrics import get_metric

        model = model or self.model
        measured = get_metric(metric or self.settings.metric)
        if self.model_b is not None and model is self.model:
            from circuitfind.model.cross import CrossRuns, widened

            return CrossRuns(
                model,
                self.model_b,
                pairs,
                measured,
                plan=self._plan(widened(model, self.model_b), pairs, edges=edges),
                progress=self.reporter.progress,
                note=self._note_once,
                hands=self.hands,
            )
        return Runs(
            model,
            pairs,
            measured,
            mean_over=self.spec.mean_over,
            plan=self._plan(model, pairs, edges=edges),
            progress=self.reporter.progress,
            note=self._note_once,
            hands=self.hands,
        )

    def _plan(self, model: Model, pairs: PromptPairs, *, edges: bool) -> MemoryPlan:
        """Sizes of batches; where the user names no amount of memory, those that an interrupted run began with."""
        from circuitfind.model.memory import make_plan

        plan = make_plan(model, self.memory, edges=edges)
        if self.memory is not None:
            return plan
        plan, changed = self.hands.planned(model, pairs, plan)
        if changed:
            self._note_once(
                "less memory is free than when this run began: batches have other sizes, and results may differ from an "
                "undisturbed run's in their last digits"
            )
        return plan

    def _note_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.reporter.note(text)

    kept: list[int] = field(default_factory=list)

    @cached_property
    def runs(self) -> Runs:
        """Runs of the pairs that the model answers rightly (``kept``), in the precision of the settings."""
        return self.runs_of(self.all_pairs.subset(self.kept))

    @cached_property
    def full_runs(self) -> Runs:
        """The same in single precision; in mixed precision the others are forgotten."""
        if self.settings.precision == "fp32":
            return self.runs
        found = self.runs_of(self.all_pairs.subset(self.kept))
        found.constants = self.runs.constants
        del self.runs
        return found

    # Neurons and features as nodes.

    @cached_property
    def dictionaries(self) -> list[Dictionary]:
        """The dictionaries whose features are nodes; those that come with the model where none are named."""
        from circuitfind.dictionaries.load import load_dictionaries

        where = self.settings.dictionaries or self._embedded
        if where is not None:
            return load_dictionaries(where)
        from circuitfind.dictionaries.planted import planted_dictionaries
        from circuitfind.model.load import planted

        return list(planted_dictionaries(planted(self.settings.model)))

    @property
    def _embedded(self) -> str | None:
        """The folder of transcoders that comes with the model; None where they are written with its weights."""
        from circuitfind.zoo import is_planted
        from circuitfind.zoo.mini import transcoders_folder

        return None if is_planted(self.settings.model) else str(transcoders_folder())

    @cached_property
    def dictionaries_hash(self) -> str | None:
        """Hash of their files; None where features are no nodes."""
        if "features" not in self.settings.nodes:
            return None
        from circuitfind.dictionaries.identity import dictionaries_identity

        where = self.settings.dictionaries or self._embedded
        return stage_key("written with", self.identity) if where is None else dictionaries_identity(where)

    @cached_property
    def split(self) -> Split:
        """Makes models in which neurons or features are nodes."""
        from circuitfind.units.dictionaries import check_transcoders, hold
        from circuitfind.units.find import DictionaryFeatures, Neurons

        if "features" not in self.settings.nodes:
            return Neurons(self.model)
        check_transcoders(self.model, self.dictionaries)
        live = self.settings.errors == "recomputed"
        return DictionaryFeatures(self.model, hold(self.runs, self.dictionaries), live_errors=live)

    def unit_runs(self, model: Model, *, edges: bool = False) -> Runs:
        """Runs of the pairs in a model in which units are nodes."""
        return self.runs_of(self.all_pairs.subset(self.kept), model=model, edges=edges)

    def runs_for(self, anatomy: Anatomy) -> Runs:
        """Runs in the model that a circuit's anatomy is of; in single precision."""
        if not anatomy.split:
            return self.full_runs
        if anatomy not in self._split_runs:
            from circuitfind.model.split import chosen_of

            self._split_runs[anatomy] = self.unit_runs(self.split(chosen_of(anatomy)), edges=True)
        return self._split_runs[anatomy]

    _split_runs: dict[Anatomy, Runs] = field(default_factory=dict)

    def in_precision(self) -> AbstractContextManager[None]:
        """A block in which passes run in the precision of the settings.

        Raises:
            UnsupportedError: The device cannot.
        """
        from circuitfind.model.precision import using

        return using(self.model, self.settings.precision)

    def passes(self) -> dict[str, int]:
        return dict(self.model.passes)


def task_hash(spec: TaskSpec) -> str:
    """Hash of what a task says, its prompt file or rows included."""
    return stage_key([json.loads(spec.model_dump_json(by_alias=True)), *prompt_files(spec)])


def prompt_files(spec: TaskSpec) -> list[str]:
    """What the files hold that a task reads prompts from, as text or as hashes."""
    content: list[str] = []
    if spec.prompts.file is not None and spec.path is not None:
        from circuitfind.task.outside import named_file

        path = named_file(spec.path, spec.prompts.file, spec.where("prompts", "file"))
        if path.is_file():
            content.append(path.read_bytes().hex())
    if spec.prompts.dataset is not None:
        from circuitfind.output.files import file_sha256
        from circuitfind.task.rows import rows_files

        content += [file_sha256(path) for path in rows_files(spec.prompts.dataset, spec.path)]
    return content


def configuration(session: Session) -> dict[str, Any]:
    """What names a run folder: task, model and settings, by content."""
    found = {
        "settings": session.settings.as_dict(),
        "task_hash": task_hash(session.spec),
        "model_hash": session.identity,
        "version": circuitfind.__version__,
    }
    return found if session.identity_b is None else {**found, "model_b_hash": session.identity_b}


def stage_keys(session: Session) -> dict[str, str]:
    """What each stage depends on, as a hash; a later stage depends on what the earlier ones do."""
    settings = session.settings
    common = [SCHEMA_VERSION, circuitfind.__version__, task_hash(session.spec), session.identity]
    neutral = replace(
        settings,
        method="",
        options={},
        direction="noising",
        ablation="resample",
        positions="none",
        precision="fp32",
        backups=True,
        include_backups=False,
        nodes="heads,mlps",
        dictionaries=None,
        errors="frozen",
        model_b=None,
    )
    chosen = neutral.as_dict() | {"rule": None}
    prompts = stage_key(common, chosen)
    how = (settings.ablation, settings.direction, settings.positions, settings.precision)
    across = () if session.identity_b is None else ("across", settings.model_b, session.identity_b)
    units = [settings.nodes, session.dictionaries_hash, settings.errors, settings.rule.faithfulness]
    scores = stage_key(
        prompts, settings.method, settings.options, *how, *(units if settings.units else ()), *across
    )
    circuit = stage_key(scores, vars(settings.rule), "pruned.json")
    keys = {"prompts": prompts, "scores": scores, "circuit": circuit}
    return keys | ({"backups": backups_key(circuit, settings)} if settings.backups else {})


def backups_key(before: str, settings: Settings, options: BackupOptions | None = None) -> str:
    """What a search for backups depends on: the circuit, or without one the prompts, and its own options."""
    return stage_key(before, settings.ablation, settings.include_backups, asdict(options or BackupOptions()))
