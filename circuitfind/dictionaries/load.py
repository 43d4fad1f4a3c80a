"""From a name to dictionaries: a local folder or file, or a hub name, in any format that is known here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from circuitfind.dictionaries import hub
from circuitfind.dictionaries.circuit_tracer import is_circuit_tracer, read_circuit_tracer
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.dunefsky import PICKLES, read_dunefsky
from circuitfind.dictionaries.gemma_scope import is_gemma_2, read_gemma_2, read_gemma_npz
from circuitfind.dictionaries.sae_lens import CONFIG, WEIGHTS, is_sae_lens, read_sae_lens
from circuitfind.dictionaries.weights import inside
from circuitfind.errors import ModelError, UnsupportedError, UsageError
from circuitfind.reading import expanded

FORMATS = (
    "sae-lens (cfg.json and sae_weights.safetensors), circuit-tracer (config.yaml), gemma-scope (.npz), "
    "gemma-scope-2 (config.json and params.safetensors), transcoder_circuits (.pt)"
)
DEEPEST = 5
"""How far down folders are looked for."""


def load_dictionaries(where: str | Path, *, layers: Sequence[int] | None = None) -> list[Dictionary]:
    """Dictionaries by layer, in float32 on the CPU.

    Args:
        where: A file, a folder (or a folder of such folders), or a hub name: ``owner/repo`` or ``owner/repo:folder``.
        layers: Only those that read in these layers.

    Raises:
        ModelError: Nothing is there, or what is there is damaged or unsafe.
        UnsupportedError: A dictionary that would give wrong numbers here.
        UsageError: Two dictionaries for one place.
    """
    where = str(where)
    path = expanded(where)
    label = str(path)
    if not path.exists():
        if where.startswith((".", "/", "~")) or not hub.is_hub_name(where):
            raise ModelError(
                f"'{where}' is no folder, no file and no hub name",
                hint="give a folder of dictionaries, or owner/repo:folder on the hub",
            )
        path, label = hub.fetch(where, layers), where.replace(":", "/")
    found = _read_file(path, label) if path.is_file() else _read_folder(path, path, label, layers, 0)
    if not found:
        raise _nothing(path, where)
    kept = [d for d in found if layers is None or d.layer in layers]
    _check_layers(kept, found, layers, where)
    _check_once(kept, where)
    return sorted(kept, key=lambda d: d.layer)


def _read_file(path: Path, label: str) -> list[Dictionary]:
    name = path.name.lower()
    if name.endswith(PICKLES):
        raise ModelError(
            f"'{path.name}' is a pickle, which can run code when it is read; refused",
            where=str(path),
            hint="convert it where you trust it: save cfg.json and sae_weights.safetensors, as sae-lens does",
        )
    if name.endswith(".npz"):
        return [read_gemma_npz(path, label)]
    if name.endswith(".pt"):
        return [read_dunefsky(path)]
    if path.name in (CONFIG, WEIGHTS) and is_sae_lens(path.parent):
        return [read_sae_lens(path.parent)]
    raise ModelError(
        f"'{path.name}' alone is no dictionary", where=str(path), hint=f"give its folder; known: {FORMATS}"
    )


def _read_folder(
    folder: Path, root: Path, label: str, layers: Sequence[int] | None, depth: int
) -> list[Dictionary]:
    if is_circuit_tracer(folder):
        inside(root, str((folder / "config.yaml").relative_to(root)), folder)
        return read_circuit_tracer(folder, layers, hub.fetch_file)
    if is_sae_lens(folder):
        for name in (CONFIG, WEIGHTS):
            inside(root, str((folder / name).relative_to(root)), folder)
        return [read_sae_lens(folder)]
    if is_gemma_2(folder):
        return read_gemma_2(folder, layers)
    _check_half(folder)
    try:
        inner = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error.strerror or error}", where=str(folder), hint="check its permissions"
        ) from error
    own = [p for p in inner if p.name.lower().endswith((".npz", ".pt")) and not _is_log(p)]
    found: list[Dictionary] = []
    for path in own:
        found += _read_file(inside(root, str(path.relative_to(root)), folder), f"{label}/{path.name}")
    if found or depth >= DEEPEST:  # folders beside dictionaries hold other versions of them
        return found
    for path in inner:
        # A link may lead out, or round in a ring.
        if path.is_dir() and not path.name.startswith(".") and path.resolve().is_relative_to(root.resolve()):
            found += _read_folder(path, root, f"{label}/{path.name}", layers, depth + 1)
    return found


def _is_log(path: Path) -> bool:
    """How often features fired, which trainers leave beside the weights."""
    return path.name.endswith(("log_feature_sparsity.pt", "log_sparsity.pt"))


def _check_half(folder: Path) -> None:
    """A folder with half of a pair is told, not passed over."""
    if (folder / "sae.safetensors").is_file():
        raise UnsupportedError(
            "the format of sparsify (sae.safetensors) is not read",
            where=str(folder),
            hint="load it with sae-lens (sparsify_disk_loader) and save it there",
        )
    for name, other in ((CONFIG, WEIGHTS), (WEIGHTS, CONFIG)):
        if (folder / name).is_file() and not any(folder.glob("*.npz")):
            raise ModelError(
                f"there is {name}, but no {other}", where=str(folder), hint="copy the other file there"
            )


def _nothing(path: Path, where: str) -> ModelError:
    if path.is_dir():
        pickles = [p.name for p in sorted(path.iterdir()) if p.name.lower().endswith(PICKLES)]
        if pickles:
            return ModelError(
                f"'{where}' holds only a pickle ({pickles[0]}), which can run code when it is read; refused",
                hint="convert it where you trust it: save cfg.json and sae_weights.safetensors, as sae-lens does",
            )
    return ModelError(f"'{where}' holds no dictionary", hint=f"known: {FORMATS}")


def _check_layers(
    kept: Sequence[Dictionary], found: Sequence[Dictionary], layers: Sequence[int] | None, where: str
) -> None:
    missing = sorted(set(layers or ()) - {d.layer for d in kept})
    if missing:
        there = sorted({d.layer for d in found})
        raise ModelError(
            f"'{where}' has no dictionary for layer {missing[0]}", hint=f"there are some for layers {there}"
        )


def _check_once(kept: Sequence[Dictionary], where: str) -> None:
    seen: dict[tuple[str, int, str, str], Dictionary] = {}
    for dictionary in kept:
        place = (dictionary.kind, dictionary.layer, dictionary.site_in, dictionary.site_out)
        if place in seen:
            raise UsageError(
                f"'{where}' holds two dictionaries for layer {dictionary.layer} ({dictionary.site_in} to "
                f"{dictionary.site_out})",
                hint="give the folder of one of them",
                details=[seen[place].source, dictionary.source],
            )
        seen[place] = dictionary
