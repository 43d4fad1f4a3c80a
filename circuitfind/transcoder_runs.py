"""Trainings and measurements of transcoders that are asked for by name: models, texts, tasks, folders."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.errors import ModelError, UsageError
from circuitfind.output.files import explained, make_folder
from circuitfind.reading import expanded, read_json

if TYPE_CHECKING:
    from circuitfind.dictionaries.dictionary import Dictionary
    from circuitfind.dictionaries.evaluate import Quality
    from circuitfind.dictionaries.settings import TranscoderSettings
    from circuitfind.dictionaries.texts import Texts
    from circuitfind.dictionaries.train import Told, Transcoders
    from circuitfind.model.bridge import Model
    from circuitfind.session import Session

FACTS = "training.json"
CHECKPOINT = "checkpoint.pt"
EVERY = 100
"""Steps between checkpoints."""
EVALUATION_TOKENS = 20_000


@dataclass(frozen=True)
class Source:
    """Where tokens come from: a file, a task's prompts, or neither for models trained on mini's corpus.

    Attributes:
        text: A file of plain text, or ``.jsonl``.
        task: A task's name or file.
        count: Prompt pairs to draw from the task; as many as it says if None.
    """

    text: Path | None = None
    task: str | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.task is not None:
            raise UsageError("both a text and a task are given", hint="give --text or --task")
        if self.count is not None and self.task is None:
            raise UsageError("--count is of a task's prompts", hint="give --task too")

    def check(self, model: str) -> None:
        """Refuse a model that has no corpus of its own, before it is loaded."""
        from circuitfind.zoo import TRAINED

        if self.text is None and self.task is None and model not in TRAINED:
            raise UsageError(
                f"there is no text: {model} has no corpus here", hint="give --text FILE or --task TASK"
            )

    def session(self, model: str, device: str) -> Session:
        from circuitfind.session import Session
        from circuitfind.settings import resolve
        from circuitfind.task.spec import load_task

        assert self.task is not None
        spec = load_task(self.task)
        return Session(spec, resolve(spec, model=model, count=self.count), device)

    @property
    def label(self) -> str:
        """For people."""
        return str(self.text) if self.text else f"task {self.task}" if self.task else "mini's corpus"


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: Where the dictionaries are.
        result: What was learnt.
        seconds: Of this run of it.
    """

    folder: Path
    result: Transcoders
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "seconds": self.seconds, **self.result.facts}


def train_transcoders(
    name: str,
    settings: TranscoderSettings,
    source: Source,
    out: Path,
    *,
    layers: list[int] | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Callable[[Told], None] | None = None,
) -> Trained:
    """Train transcoders and write a folder of them; a stopped training goes on from its checkpoint beside the folder.

    Args:
        name: The model.
        settings: Of the training.
        source: What the model reads.
        out: The folder, which appears when all of it is there.
        layers: Which layers; all if None.
        device: Where it runs.
        force: Replace a folder that is there, and begin anew.
        progress: Called now and then.
    """
    from circuitfind.dictionaries.activations import check_layers
    from circuitfind.dictionaries.train import train

    source.check(name)
    _check_target(out, force)
    model, texts = _model_and_texts(name, source, device)
    check_layers(model, layers, settings.site)  # before anything is written
    work = out.with_name(f".{out.name}.partial")
    if force:
        shutil.rmtree(work, ignore_errors=True)
    started = time.monotonic()
    with _working(work):
        found = train(
            model, texts, settings, layers, checkpoint=work / CHECKPOINT, every=EVERY, progress=progress
        )
        write_folder(found, out, force=force)
        shutil.rmtree(work, ignore_errors=True)
    return Trained(out, found, time.monotonic() - started)


def _check_target(out: Path, force: bool) -> None:
    if not out.name or out.name == "..":
        raise UsageError(f"'{out}' is no name for a folder", hint="give --out FOLDER")
    if out.exists() and not (force and (out / FACTS).is_file()):
        hint = (
            "choose another --out, or --force to replace it"
            if (out / FACTS).is_file()
            else "choose another --out"
        )
        raise UsageError("the folder is there already", where=str(out), hint=hint)


@contextlib.contextmanager
def _working(work: Path) -> Iterator[None]:
    """The folder of the checkpoint, which stays where there is one."""
    make_folder(work)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            work.rmdir()  # only where it is empty


def _model_and_texts(name: str, source: Source, device: str) -> tuple[Model, Texts]:
    from circuitfind.dictionaries.texts import Sequences, mini_documents, read_text, tokenize
    from circuitfind.model.load import load_model

    if source.task is not None:
        session = source.session(name, device)
        pairs = session.all_pairs
        prompts = dict.fromkeys(p for pair in pairs for p in (pair.clean, pair.corrupted))
        return session.model, Sequences(tuple(prompts))
    texts = None if source.text is None else read_text(source.text)
    model = load_model(name, device=device)
    if texts is None:
        return model, mini_documents(model)
    return model, Sequences(tuple(tokenize(model, texts)))


def write_folder(found: Transcoders, out: Path, *, force: bool = False) -> None:
    """Write dictionaries, one folder each, and what made them; all of it appears at once."""
    from circuitfind.dictionaries.save import save_dictionary

    fresh, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for path in (fresh, old):
        if path.is_symlink():  # it would be written through
            path.unlink()
    shutil.rmtree(fresh, ignore_errors=True)
    make_folder(fresh)
    try:
        for layer, dictionary in found.dictionaries.items():
            save_dictionary(dictionary, fresh / f"layer_{layer}")
        text = json.dumps({"version": 1, **found.facts}, indent=1) + "\n"
        (fresh / FACTS).write_text(text, encoding="utf-8")
        if force and out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise explained(error, out) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@dataclass(frozen=True)
class Measured:
    """Dictionaries, measured."""

    folder: str
    model: str
    data: str
    quality: Quality
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        own = {
            "folder": self.folder,
            "model": self.model,
            "data": self.data,
            "seconds": self.seconds,
        }
        return {**own, **self.quality.as_dict()}


def measure_transcoders(
    folder: str, name: str, source: Source, *, device: str = "auto", tokens: int = EVALUATION_TOKENS
) -> Measured:
    """Measure the dictionaries of a folder in a model.

    Args:
        folder: As ``train_transcoders`` wrote it, or in a format of another tool, or a hub name.
        name: The model.
        source: What the model reads; of a text or corpus the first so many ``tokens``.
        device: Where it runs.
        tokens: Of a text, at most.
    """
    from circuitfind.dictionaries.evaluate import evaluate_task, evaluate_text
    from circuitfind.task.metrics import get_metric

    source.check(name)
    found = read_folder(folder)
    started = time.monotonic()
    if source.task is not None:
        session = source.session(name, device)
        check_model(folder, session.model)
        metric = get_metric(session.settings.metric)
        quality = evaluate_task(session.model, found, session.all_pairs, metric)
    else:
        model, texts = _model_and_texts(name, source, device)
        check_model(folder, model)
        quality = evaluate_text(model, found, _first(texts, tokens))
    return Measured(folder, name, source.label, quality, time.monotonic() - started)


def _first(texts: Texts, tokens: int) -> list[Any]:
    """The beginning of a text; of mini's corpus, documents of a stream that no training saw."""
    from circuitfind.dictionaries.texts import MiniDocuments, Sequences

    if isinstance(texts, Sequences):
        found: list[Any] = []
        for item in texts.items:
            if sum(map(len, found)) + len(item) > tokens and found:
                break
            found.append(item)
        return found
    if isinstance(texts, MiniDocuments):
        texts = MiniDocuments(texts.tokenizer, texts.end, "evaluation")
    return texts.portion(0, tokens, 0)


def read_folder(folder: str) -> dict[int, Dictionary]:
    """The dictionaries of a folder by layer.

    Raises:
        ModelError: There are none, or what is there is damaged.
        UsageError: There are two of one layer.
    """
    from circuitfind.dictionaries.load import load_dictionaries

    found: dict[int, Dictionary] = {}
    for one in load_dictionaries(folder):
        if one.layer in found:
            raise UsageError(
                f"the folder has two dictionaries of layer {one.layer}",
                where=folder,
                hint="give a folder with one for each layer",
            )
        found[one.layer] = one
    return found


def check_model(folder: str, model: Model) -> None:
    """Refuse a folder that was trained on another model, where it says on which.

    Raises:
        ModelError: It was.
    """
    path = expanded(folder) / FACTS
    if not path.is_file():
        return
    try:
        facts = read_json(path)
        name, fingerprint = str(facts["model_name"]), str(facts["model_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the file does not say what the transcoders were trained on",
            where=str(path),
            hint="train them again, or remove the file to have the sizes checked alone",
        ) from error
    if fingerprint != model.fingerprint:
        raise ModelError(
            f"the transcoders were trained on {name}, and the weights of {model.name} are others",
            where=folder,
            hint=f"give --model {name}",
        )
