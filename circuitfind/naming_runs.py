"""Names for the units of a finished run: what is asked for by ``circuitfind name`` and ``circuitfind label``.

``names.json`` is a stage of the run like any other: it is reused while nothing that it depends on has changed. Labels are kept
beside the runs (output/labels.py). Both show in the picture, which is drawn again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import circuitfind
from circuitfind.backup_runs import session_of, settings_of
from circuitfind.errors import CircuitfindError, UsageError
from circuitfind.labelling import Subject, labels_file, redraw, subject_of
from circuitfind.names import UNITS, Kind, Node, parse_node
from circuitfind.output.labels import Names
from circuitfind.output.store import Run, Store, stage_key
from circuitfind.output.words import FORMAT, NAMES, VERSION, owner_of
from circuitfind.session import Reporter, Session, Silent
from circuitfind.summary import Discovery, finished_stages
from circuitfind.transcoder_runs import Source, check_model

if TYPE_CHECKING:
    from circuitfind.dictionaries.dictionary import Dictionary

DEFAULT_TOKENS = 20_000
"""Of a text or a corpus, at most."""


@dataclass(frozen=True)
class NameOptions:
    """What to look at.

    Attributes:
        text: A file of texts, in place of the run's own prompts.
        task: A task whose prompts are read, likewise.
        top: Contexts to keep of each node.
        tokens: Of a text or a corpus, at most.
        nodes: Neurons and features beside those of the circuit.
        dictionaries: The folder that features are of, in place of the run's own.
    """

    text: Path | None = None
    task: str | None = None
    top: int = 5
    tokens: int = DEFAULT_TOKENS
    nodes: tuple[str, ...] = ()
    dictionaries: str | None = None

    def __post_init__(self) -> None:
        _ = self.source  # refuses both
        if self.top < 1:
            raise UsageError(f"the {self.top} strongest contexts are none", hint="give at least 1")
        if self.tokens < 1:
            raise UsageError(f"{self.tokens} tokens are none", hint="give at least 1")
        for name in self.nodes:
            node = parse_node(name)
            if node.kind not in UNITS:
                raise UsageError(
                    f"'{name}' is no neuron and no feature",
                    hint="name units such as m5.n1203, m5.n3+17 or t5.f88",
                )

    @property
    def source(self) -> Source:
        return Source(self.text, self.task)


@dataclass(frozen=True)
class Named:
    """What is known of a run's units.

    Attributes:
        data: As in ``names.json``.
        subject: What the run found.
        labels: By node.
        pictures: That were drawn again.
    """

    folder: Path
    data: dict[str, Any]
    subject: Subject
    labels: Names
    pictures: tuple[Path, ...]

    @property
    def file(self) -> Path:
        return self.folder / NAMES

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``names.json`` with the label, the score and the role of each node."""
        nodes = [
            {
                **node,
                "label": self.labels.get(node["name"]),
                "score": _finite(self.subject.scores.get(node["name"])),
                "role": self.subject.roles.get(node["name"]),
            }
            for node in self.data["nodes"]
        ]
        return {
            **self.data,
            "nodes": nodes,
            "file": str(self.file),
            "pictures": [str(p) for p in self.pictures],
        }


def name_run(
    run: Run,
    options: NameOptions | None = None,
    *,
    device: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
) -> Named:
    """Look at the neurons and features of a finished run's circuit, and write ``names.json``.

    Args:
        run: The run.
        options: What to look at.
        device: Where the model runs.
        force: Look again.
        reporter: Hears of progress.

    Raises:
        RunError: The run has no circuit, or its task or model has changed since.
        UsageError: There is nothing to name, or no text.
    """
    options, reporter = options or NameOptions(), reporter or Silent()
    subject, done = subject_of(run), finished_stages(run)
    labels_file(run)  # a damaged one is told before anything is computed
    nodes = _nodes(subject, options)
    dictionaries = _dictionaries(run, nodes, options)
    key = stage_key(
        [VERSION, circuitfind.__version__, run.manifest["hashes"].get("model"), done["prompts"].key],
        [str(node) for node in nodes],
        None if dictionaries is None else dictionaries.digest,
        _source_key(options),
        [options.top, options.tokens],
    )
    stage = None if force else run.stage("names", key)
    if stage is None:
        reporter.stage("names", "running")
        started = time.perf_counter()
        session = session_of(run, settings_of(run), device, None, reporter)
        session.kept = list(done["prompts"].facts["kept"])
        data, passes = _look(session, nodes, dictionaries, options, reporter)
        text = json.dumps({**data, "run": run.name}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        facts = {
            "seconds": round(time.perf_counter() - started, 3),
            "forward_passes": passes,
            "backward_passes": 0,
        }
        stage = run.finish_stage("names", key, {NAMES: text}, facts)
        reporter.stage("names", "finished", f"{facts['seconds']:.1f} s")
    else:
        reporter.stage("names", "reused", "nothing that it depends on has changed")
    pictures = redraw(run, subject, reporter)
    data = json.loads(stage.read(NAMES))
    return Named(run.path, data, subject, labels_file(run).of(owner_of(run)), tuple(pictures))


def name_found(
    found: Discovery, *, device: str = "auto", force: bool = False, reporter: Reporter | None = None
) -> None:
    """The same for what ``discover`` has just found, unless its neurons and features are named already.

    That it cannot be done is a note.
    """
    reporter, run = reporter or Silent(), Store().find(str(found.folder.resolve()))
    done = None if force else finished_stages(run).get("names")
    if not found.circuit.units:
        return
    if done is not None:
        known = {node["name"] for node in json.loads(done.read(NAMES))["nodes"]}
        if {str(node) for node in found.circuit.units} <= known:
            reporter.stage("names", "reused", "nothing that it depends on has changed")
            return
    try:
        name_run(run, device=device, force=force, reporter=reporter)
    except CircuitfindError as error:
        reporter.note(f"neurons and features are not named: {error.what}")
    except (RuntimeError, MemoryError) as error:
        from circuitfind.model.memory import out_of_memory

        if not out_of_memory(error):
            raise
        reporter.note("neurons and features are not named: memory ran out")


def _nodes(subject: Subject, options: NameOptions) -> tuple[Node, ...]:
    named = [parse_node(name).bare for name in options.nodes]
    found = dict.fromkeys([*subject.units, *named])
    if not found:
        raise UsageError(
            "the circuit holds no neurons and no features",
            hint="name some with --node m1.n203, or find such a circuit: circuitfind discover TASK --nodes heads,neurons",
        )
    return tuple(sorted(found, key=lambda node: node.order))


@dataclass(frozen=True)
class _Dictionaries:
    """What features are of.

    Attributes:
        where: Folder or hub name; None where they are written with the weights of a planted model.
        digest: Their hash.
    """

    where: str | None
    digest: str

    @property
    def label(self) -> str:
        return self.where or "written with the model"

    def load(self, session: Session, nodes: Sequence[Node]) -> list[Dictionary]:
        """Those that the features among some nodes are of, and maybe more."""
        model = session.model
        if self.where is None:
            from circuitfind.dictionaries.planted import planted_dictionaries
            from circuitfind.model.load import planted

            return list(planted_dictionaries(planted(session.settings.model)))
        from circuitfind.dictionaries.load import load_dictionaries

        features = [node for node in nodes if node.kind is Kind.FEATURE]
        transcoders = all(node.family == "t" for node in features)
        known = {node.layer for node in features if node.layer < len(model.layers)}
        check_model(self.where, model)
        # An SAE of the stream into a block is named after the block before it, so that its layer alone does not tell.
        return load_dictionaries(self.where, layers=sorted(known) if transcoders and known else None)


def _dictionaries(run: Run, nodes: Iterable[Node], options: NameOptions) -> _Dictionaries | None:
    """As asked for, as the run was made with, or those that come with the model; None without features.

    Raises:
        UsageError: There are none, or the run was made with others than those that are asked for.
    """
    from circuitfind.dictionaries.identity import dictionaries_identity
    from circuitfind.zoo import has_dictionaries, is_planted

    first = next((node for node in nodes if node.kind is Kind.FEATURE), None)
    if first is None:
        return None
    model, model_hash = run.manifest["model"], run.manifest["hashes"].get("model")
    recorded, made_with = owner_of(run).dictionaries, run.manifest["hashes"].get("dictionaries")
    where = options.dictionaries or recorded
    if where is None and not has_dictionaries(model):
        raise UsageError(
            f"'{first}' is of a dictionary, and this run says of none",
            hint="name the folder of the dictionaries with --dictionaries",
        )
    if where is None and is_planted(model):
        return _Dictionaries(None, stage_key("written with", model_hash))
    if where is None:
        from circuitfind.zoo.mini import transcoders_folder

        where = str(transcoders_folder())
    digest = dictionaries_identity(where)
    if made_with and digest != made_with:
        raise UsageError(
            "the features of this run are of other dictionaries",
            where=where,
            hint=f"it was made with {recorded or 'those that come with the model'}",
        )
    return _Dictionaries(where, digest)


def _source_key(options: NameOptions) -> Any:
    from circuitfind.session import task_hash
    from circuitfind.task.spec import load_task

    if options.text is not None:
        from circuitfind.output.files import file_sha256

        try:
            return ["text", file_sha256(options.text)]
        except OSError as error:
            raise UsageError(
                f"the text cannot be read: {error.strerror or error}",
                where=str(options.text),
                hint="give a file of plain text",
            ) from error
    return ["task", task_hash(load_task(options.task))] if options.task is not None else None


def _look(
    session: Session,
    nodes: Sequence[Node],
    dictionaries: _Dictionaries | None,
    options: NameOptions,
    reporter: Reporter,
) -> tuple[dict[str, Any], int]:
    from circuitfind.naming.banks import Banks
    from circuitfind.naming.report import describe
    from circuitfind.naming.tokens import reader

    model = session.model
    banks = Banks(model, () if dictionaries is None else dictionaries.load(session, nodes))
    for node in nodes:
        _ = banks[node]  # a wrong name is told before texts are read
    before = session.passes()["forward"]
    texts, label = _texts(session, options)
    count, done = len(texts), [0]

    def progress(more: int) -> None:
        done[0] += more
        reporter.stage("names", "running", f"{done[0]} of {count} texts")

    found = describe(
        banks,
        nodes,
        texts,
        reader(model.tokenizer, session.spec.vocab),
        pairs=session.all_pairs.subset(session.kept),
        top=options.top,
        progress=progress,
    )
    data = {
        "format": FORMAT,
        "version": VERSION,
        "task": session.spec.name,
        "model": model.name,
        "model_hash": session.identity,
        "dictionaries": None if dictionaries is None else dictionaries.label,
        "dictionaries_hash": None if dictionaries is None else dictionaries.digest,
        "source": {"from": label, "texts": count, "tokens": sum(map(len, texts))},
        "top": options.top,
        "joined_by": "" if model.tokenizer is not None else " ",
        **found,
    }
    return data, session.passes()["forward"] - before


def _texts(session: Session, options: NameOptions) -> tuple[list[Sequence[int]], str]:
    """Sequences, each text once, and what they are."""
    from circuitfind.dictionaries.texts import mini_documents, read_text, tokenize
    from circuitfind.zoo import TRAINED

    model = session.model
    if options.text is not None:
        return _some(tokenize(model, read_text(options.text)), options.tokens), str(options.text)
    if options.task is not None:
        other = options.source.session(session.settings.model, session.device)
        other.__dict__["model"] = model  # the same one: loaded once
        return _prompts(other), f"prompts of {other.spec.name}"
    own, label = _prompts(session), f"prompts of {session.spec.name}"
    if session.settings.model not in TRAINED:
        return own, label
    corpus = mini_documents(model, "names").portion(0, options.tokens, 0)
    return [*own, *_some(corpus, options.tokens)], f"{label}, and the corpus of mini"


def _prompts(session: Session) -> list[Sequence[int]]:
    pairs = session.all_pairs
    return list(dict.fromkeys(prompt for pair in pairs for prompt in (pair.clean, pair.corrupted)))


def _some(texts: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """The first so many tokens in whole texts, each once; at least one text."""
    found: dict[tuple[int, ...], None] = {}
    total = 0
    for text in texts:
        if total + len(text) > tokens and found:
            break
        if tuple(text) not in found:
            found[tuple(text)] = None
            total += len(text)
    return list(found)


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)
