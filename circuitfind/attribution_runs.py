"""Attribution graphs that are asked for by name: models, prompts, tasks, folders of finished graphs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.errors import ModelError, PromptError, UsageError, nearest
from circuitfind.model.identity import model_folder
from circuitfind.output.attribution import GRAPH, SUMMARY, Attributed, Look, write_graphs
from circuitfind.output.files import stage_key
from circuitfind.output.store import Store, run_name
from circuitfind.reading import expanded, read_json
from circuitfind.session import Reporter, Session, Silent
from circuitfind.task.spec import find_tasks, load_task
from circuitfind.transcoder_runs import check_model
from circuitfind.zoo import ZOO

if TYPE_CHECKING:
    from circuitfind.attribution.build import Options
    from circuitfind.attribution.graph import AttributionGraph
    from circuitfind.model.bridge import Model
    from circuitfind.task.pairs import PromptPairs

DEFAULT_MODEL = "mini"
COUNT = 8
"""Prompts of a task."""


def attribute_prompt(
    *,
    text: str | None = None,
    tokens: Sequence[int] | None = None,
    model: str = DEFAULT_MODEL,
    dictionaries: str | None = None,
    bos: bool | None = None,
    options: Options | None = None,
    look: Look | None = None,
    out: Path | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Attributed:
    """Make, prune, export and draw the graph of one prompt.

    Args:
        text: The prompt.
        tokens: The prompt as token ids, in place of ``text``.
        model: Zoo name, folder or hub name.
        dictionaries: Its transcoders: a folder or hub name; those that come with ``mini`` if None.
        bos: Whether the beginning-of-text token is put in front; as the tokenizer does if None.
        options: What decides the graph.
        look: What decides what is kept and drawn of it.
        out: The folder; ``attribution-MODEL-HASH`` in the outputs folder if None.
        device: Where the model runs.
        reporter: Hears of progress.

    Raises:
        CircuitfindError: Whatever the command would print.
    """
    from circuitfind.attribution.build import Options, attribute
    from circuitfind.attribution.sets import stream_dictionaries
    from circuitfind.model.load import load_model

    options, look, reporter = options or Options(), look or Look(), reporter or Silent()
    where = _dictionaries(model, dictionaries)
    reporter.stage("attribution", "running", f"{model}, transcoders {_short(where)}")
    started = time.monotonic()
    loaded = load_model(model, device=device)
    check_model(where, loaded)
    ids = _prompt(loaded, text, tokens, bos)
    config = {"dictionaries": where, "tokens": ids, **vars(options)}
    graphs = attribute(
        loaded,
        [ids],
        stream_dictionaries(where),
        texts=[text or ""],
        named=_short(where),
        options=options,
        progress=lambda done, of: reporter.stage("attribution", "running", f"{done:,} of {of:,} rows"),
    )
    folder = out or _folder(model, loaded, config)
    _check_folder(folder)
    return _finish(graphs, folder, look, reporter, started, {"model": model})


def attribute_task(
    task: str,
    *,
    model: str | None = None,
    dictionaries: str | None = None,
    count: int | None = None,
    options: Options | None = None,
    look: Look | None = None,
    out: Path | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Attributed:
    """Make the graph of each clean prompt of a task, and average them.

    Args:
        task: A task's name or file.
        model: The task's if None.
        dictionaries: As for ``attribute_prompt``.
        count: Prompts to draw; those that the model answers wrongly are left out.
        options: What decides the graphs.
        look: What decides what is kept and drawn of them.
        out: As for ``attribute_prompt``.
        device: Where the model runs.
        reporter: Hears of progress.

    Raises:
        CircuitfindError: Whatever the command would print.
    """
    from circuitfind.attribution.build import Options, attribute
    from circuitfind.attribution.sets import stream_dictionaries
    from circuitfind.settings import resolve

    options, look, reporter = options or Options(), look or Look(), reporter or Silent()
    spec = load_task(task)
    settings = resolve(spec, model=model, count=count or COUNT)
    where = _dictionaries(settings.model, dictionaries)
    reporter.stage("attribution", "running", f"{spec.name} in {settings.model}, transcoders {_short(where)}")
    started = time.monotonic()
    session = Session(spec, settings, device, reporter)
    pairs = _answered(session, reporter)
    check_model(where, session.model)
    config = {"dictionaries": where, "pairs": pairs.content_hash(), **vars(options)}
    graphs = attribute(
        session.model,
        [pair.clean for pair in pairs],
        stream_dictionaries(where),
        texts=[pair.clean_text for pair in pairs],
        answers=[pair.answer_position for pair in pairs],
        named=_short(where),
        options=options,
        progress=lambda done, of: reporter.stage("attribution", "running", f"{done:,} of {of:,} rows"),
    )
    folder = out or _folder(settings.model, session.model, config)
    _check_folder(folder)
    facts = {
        "model": settings.model,
        "task": spec.name,
        "positions": [dict(pair.positions) for pair in pairs],
    }
    return _finish(graphs, folder, look, reporter, started, facts)


def reprune(
    where: str | Path, *, look: Look | None = None, out: Path | None = None, reporter: Reporter | None = None
) -> Attributed:
    """Prune finished graphs anew, without their model.

    Args:
        where: A folder that the others wrote, or one ``.npz`` in it.
        look: What is kept and drawn.
        out: Where to write; the same folder if None.
        reporter: Hears of progress.

    Raises:
        UsageError: There are no graphs.
    """
    from circuitfind.attribution.saved import read_graph

    path = expanded(where)
    single = path.is_file()
    folder = path.parent if single else path
    files = [path] if single else sorted(folder.glob(f"{GRAPH}*.npz"))
    if not files:
        raise UsageError(
            f"'{where}' holds no attribution graph", hint="give a folder that `circuitfind attribute` wrote"
        )
    kept = {} if single else _facts(folder)
    target = out or folder
    _check_folder(target)
    if single and target == folder and len(list(folder.glob(f"{GRAPH}*.npz"))) > 1:
        raise UsageError(
            f"'{where}' is one graph of several, whose summary it would replace",
            hint=f"give --out FOLDER, or all of them: {folder}",
        )
    if len(files) > 1 and "task" not in kept:
        raise UsageError(
            f"there are {len(files)} graphs, and no task that they are of",
            where=str(folder / SUMMARY),
            hint="give one of them, and --out FOLDER",
        )
    if not kept:
        kept = {"model": read_graph(files[0]).model}
    graphs = (read_graph(file) for file in files)
    return _finish(
        graphs, target, look or Look(), reporter or Silent(), time.monotonic(), kept, save=target != folder
    )


def is_saved(where: str) -> bool:
    """Whether a word names finished graphs, and not a task."""
    path = expanded(where)
    if not path.is_dir():
        return path.suffix == ".npz"
    return any(path.glob(f"{GRAPH}*.npz")) or where not in find_tasks()


def _finish(
    graphs: Iterable[AttributionGraph],
    folder: Path,
    look: Look,
    reporter: Reporter,
    started: float,
    facts: dict[str, Any],
    *,
    save: bool = True,
) -> Attributed:
    found = write_graphs(graphs, folder, look, facts, note=reporter.note, save=save)
    reporter.stage("attribution", "finished", f"{time.monotonic() - started:.1f} s")
    return found


# Prompts, dictionaries, folders.


def _prompt(model: Model, text: str | None, tokens: Sequence[int] | None, bos: bool | None) -> list[int]:
    if (text is None) == (tokens is None):
        raise UsageError("a prompt is text or token ids", hint="give --text or --tokens")
    if model.tokenizer is None:
        if tokens is None:
            raise ModelError(
                f"{model.name} has no tokenizer, so it reads no text", hint="give token ids (--tokens 3,17,8)"
            )
        if bos:
            raise UsageError("without a tokenizer no token is known to begin a text", hint="leave out --bos")
        return list(tokens)
    ids = [i for i, _, _ in model.tokenizer.encode(text)] if text is not None else list(tokens or ())
    if text is not None and not ids:
        raise PromptError("the prompt is empty", hint="give at least one word")
    first = model.tokenizer.bos if bos is None and text is not None else None
    if bos:
        first = getattr(model.tokenizer, "bos_id", None)
        if first is None:
            raise UsageError(
                f"the tokenizer of {model.name} has no token that begins a text", hint="leave out --bos"
            )
    return ids if first is None else [int(first), *ids]


def _dictionaries(model: str, given: str | None) -> str:
    if given is not None:
        return given
    if model == "mini":
        from circuitfind.zoo.mini import transcoders_folder

        try:
            return str(transcoders_folder())
        except FileNotFoundError as error:
            raise ModelError(str(error), hint="give --dictionaries FOLDER") from error
    hint = "give --dictionaries FOLDER, or train some with `circuitfind transcoders train`"
    near = None if model in ZOO or model_folder(model).is_dir() else nearest(model, ["mini"])
    raise UsageError(
        f"no transcoders of {model} come with circuitfind",
        hint=hint if near is None else f"did you mean '{near}'? Or {hint}",
    )


def _short(where: str) -> str:
    """What people are told of a path."""
    from circuitfind.zoo.mini import TRANSCODERS

    return "mini/transcoders" if Path(where) == TRANSCODERS else where


def _answered(session: Session, reporter: Reporter) -> PromptPairs:
    """The pairs that the model answers rightly."""
    pairs = session.all_pairs
    for text in pairs.notes:
        reporter.note(text)
    right = session.runs_of(pairs, "logit-diff").answered_rightly
    kept = [i for i in range(len(pairs)) if right[i]]
    if not kept:
        raise PromptError(
            f"{session.settings.model} answers none of the {len(pairs)} prompts of {session.spec.name} rightly",
            hint="give a model that does the task",
        )
    if len(kept) < len(pairs):
        reporter.note(
            f"{len(pairs) - len(kept)} of {len(pairs)} prompts left out: the model answers them wrongly"
        )
    return pairs.subset(kept)


def _folder(name: str, model: Model, config: Mapping[str, Any]) -> Path:
    own, _ = run_name("attribution", name, {"weights": model.fingerprint, "config": stage_key(dict(config))})
    return Store().root / own


def _check_folder(folder: Path) -> None:
    """Refuse to write among files that are not ours."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is a file, not a folder", where=str(folder), hint="choose another --out")
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob(f"{GRAPH}*.npz")):
        raise UsageError("the folder holds other files", where=str(folder), hint="choose another --out")


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    try:
        found = read_json(path)
        return {key: found[key] for key in ("model", "task", "positions") if key in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the summary cannot be read: {error}",
            where=str(path),
            hint="make the graphs again, or give one graph.npz of them",
        ) from error
