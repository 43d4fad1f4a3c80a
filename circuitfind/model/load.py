"""From a model's name to a ``Model``: the zoo, a local folder (Hugging Face or TransformerLens format), or the hub.

Weights are read from safetensors only. A pickle can run code while it is read, so it is refused wherever it is met.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuitfind.errors import ModelError, nearest
from circuitfind.model import hub
from circuitfind.model.bridge import Model
from circuitfind.model.checkpoint import placed_apart
from circuitfind.model.declared import check_declared
from circuitfind.model.identity import hash_files, identity, model_folder
from circuitfind.model.own_code import check_folder, code_is_allowed
from circuitfind.model.quiet import quiet
from circuitfind.model.tl_format import boot_native, load_tl
from circuitfind.model.tokenizer import HFTokenizer
from circuitfind.offload import current, make_folder
from circuitfind.reading import read_json
from circuitfind.zoo import TRAINED, ZOO, is_planted, is_zoo, split_zoo, trained_folder

if TYPE_CHECKING:
    from circuitfind.zoo.planted import Planted

TL_FORMAT = "transformer-lens"
KNOWN_HUB = (
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "distilgpt2",
    "EleutherAI/pythia-70m",
    "EleutherAI/pythia-160m",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_model(name: str, *, device: str = "auto") -> Model:
    """Load a model by zoo name, folder or hub name.

    Args:
        name: ``mini``, ``mini-redundant``, ``planted/induction`` (``planted/induction:7`` for seed 7), a folder, or
            a hub name.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ModelError: No such model, no network, a damaged or unsafe file.
        UnsupportedError: A model that cannot be taken apart.
    """
    found = _find(name, pick_device(device))
    found.loaded_as = name
    return found


def _find(name: str, where: torch.device) -> Model:
    if is_zoo(name):
        return _load_zoo(name, where)
    folder = model_folder(name)
    if folder.is_dir():
        return _load_folder(folder, name, where)
    if name.startswith("$"):
        variable = name.partition("/")[0][1:].strip("{}")
        raise ModelError(
            f"there is no folder '{name}'" + (" (it is not set)" if str(folder).startswith("$") else ""),
            hint=f"set {variable} to the folder that holds it, or name the model's own folder by --model",
        )
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"'{name}' is {'a file' if folder.exists() else 'no folder'}",
            hint="give the folder that holds config.json and model.safetensors, a zoo name, or a hub name",
        )
    return _load_hub(name, where)


def pick_device(device: str) -> torch.device:
    """The device that a flag names.

    Raises:
        ModelError: No such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"there is no device '{device}' here: {str(error).splitlines()[0]}",
            hint="use --device cpu or auto",
        ) from error
    return found


def planted(name: str) -> Planted:
    """The planted model that a zoo name stands for, with its truth."""
    from circuitfind.zoo.planted import build

    kind, seed = split_zoo(name)
    return build(kind.removeprefix("planted/"), seed)


def load_tokenizer(name: str) -> HFTokenizer | None:
    """The tokenizer of a model without the model: of a zoo name, a folder (weights may be missing) or a hub name.

    None for models that read token ids.

    Raises:
        ModelError: There is none of that name, or it cannot be read.
    """
    if is_planted(name):
        planted(name)  # so that an unknown name is told
        return None
    folder = trained_folder(name) if name in TRAINED else model_folder(name)
    local = folder.is_dir()
    if not local and name.startswith((".", "/", "~", "$")):
        raise ModelError(f"'{name}' is no folder", hint="give a folder, a zoo name, or a hub name")
    path = str(folder) if local else name
    trusted = code_is_allowed(path, name, local=local)
    with quiet():
        found = _hf_tokenizer(path, local, trusted)
    return None if found is None else HFTokenizer(found)


def _load_zoo(name: str, device: torch.device) -> Model:
    if name in TRAINED:
        try:
            folder = trained_folder(name)
        except FileNotFoundError as error:
            raise ModelError(str(error), hint="reinstall circuitfind, or train it") from error
        return _load_hf(str(folder), name, device, fingerprint=identity(name), local=True)
    model = planted(name)
    return boot_native(model.config, model.state, name, device, identity(name) or "", source=f"zoo: {name}")


# Folders.


def _load_folder(folder: Path, name: str, device: torch.device) -> Model:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(
            f"'{name}' holds no config.json, so it is no model",
            hint="give a Hugging Face folder (config.json, model.safetensors) or a TransformerLens-format one",
        )
    try:
        config = read_json(config_path, words=True)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"config.json cannot be read: {error}", where=str(config_path), hint="restore the file"
        ) from error
    if not isinstance(config, dict):
        raise ModelError("config.json is no mapping", where=str(config_path), hint="restore the file")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        unsafe = [p.name for p in sorted(folder.iterdir()) if p.suffix in _PICKLES]
        if unsafe:
            raise ModelError(
                f"the weights are a pickle ({unsafe[0]}), which can run code when it is read; refused",
                where=str(folder),
                hint="convert them: load the model where you trust it and save it with safetensors",
            )
        raise ModelError(
            "there are no weights (*.safetensors)", where=str(folder), hint="copy model.safetensors there"
        )
    check_folder(folder, name)
    for path in weights:
        _check_safetensors(path)
    fingerprint = hash_files(folder)
    if config.get("format") == TL_FORMAT:
        return load_tl(folder, config, weights, name, device, fingerprint)
    check_declared(config, weights, config_path)
    return _load_hf(str(folder), name, device, fingerprint=fingerprint, local=True)


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            handle.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"the weights are damaged: {error}", where=str(path), hint="copy or download the file again"
        ) from error


# Hugging Face format, from a folder or from the hub.


def _load_hub(name: str, device: torch.device) -> Model:
    if not _offline() and not _cached(name) and not hub.reachable():
        # The hub's client would try again for half a minute before it says the same.
        raise _hf_error(
            name, OSError("the hub cannot be reached, and the model is not in its cache"), local=False
        )
    return _load_hf(name, name, device, fingerprint=None, local=False)


def _load_hf(path: str, name: str, device: torch.device, *, fingerprint: str | None, local: bool) -> Model:
    trusted = code_is_allowed(path, name, local=local)
    offload, placed, folder = current(), {}, None
    if offload.placed:
        folder = make_folder(offload)
        placed = {"device_map": {"": "disk"}, "offload_folder": str(folder)}
    with quiet():
        from transformers import AutoModelForCausalLM

        try:
            hf_model, info = AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=local or _offline(),
                use_safetensors=True,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=trusted,
                **placed,
            )
        except (
            Exception
        ) as error:  # transformers raises OSError, ValueError, KeyError and its own, by version
            raise _hf_error(name, error, local) from error
        if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
            raise ModelError(
                f"the weights lack '{missing[0]}'" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
                where=name,
                hint="config.json and the weights do not belong together, or a file is missing",
            )
        tokenizer = _hf_tokenizer(path, local, trusted)
        from transformer_lens.model_bridge import TransformerBridge

        hf_model.eval()
        placement = None if folder is None else placed_apart(hf_model, offload, device, folder)
        try:
            bridge = TransformerBridge.boot_transformers(
                path,
                hf_model=hf_model,
                tokenizer=_token_ids_only(),
                device=str(device if placement is None else placement.home),
                dtype=torch.float32,
                trust_remote_code=trusted,
            )
        except Exception as error:
            raise ModelError(
                f"TransformerLens cannot wrap '{name}': {_first_line(error)}",
                hint="see `circuitfind doctor` for versions; supported families are listed in the README",
            ) from error
    commit = getattr(hf_model.config, "_commit_hash", None)
    source = f"folder: {Path(path).resolve()}" if local else f"hub: {path}@{commit}"
    return Model(
        bridge,
        name=name,
        fingerprint=fingerprint or commit or _hash_state(hf_model.state_dict()),
        tokenizer=None if tokenizer is None else HFTokenizer(tokenizer),
        source=f"zoo: {name}" if name in TRAINED else source,
        placement=placement,
    )


def _hf_error(name: str, error: Exception, local: bool) -> ModelError:
    text = _first_line(error)
    if local:
        return ModelError(
            f"the folder cannot be loaded: {text}",
            where=name,
            hint="it needs config.json and matching model.safetensors",
        )
    near = nearest(name, [*ZOO, *KNOWN_HUB])
    hint = "give a zoo name (circuitfind list models), a folder, or a hub name; hub names need the network or a filled cache"
    if near and near != name:
        hint = f"did you mean '{near}'? Or " + hint
    if "safetensors" in text and "does not appear to have" in text:
        return ModelError(
            f"'{name}' has no safetensors weights on the hub; pickles are refused",
            hint="convert it and give the folder",
        )
    return ModelError(
        f"cannot find the model '{name}': it is not in the zoo, there is no such folder, and the hub did not give it",
        hint=hint,
        details=[text],
    )


def _hf_tokenizer(path: str, local: bool, trusted: bool) -> Any | None:
    from transformers import AutoTokenizer

    folder = Path(path)
    if local and not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            path, local_files_only=local or _offline(), trust_remote_code=trusted
        )
    except Exception as error:
        raise ModelError(
            f"the tokenizer cannot be read: {_first_line(error)}", where=path, hint="restore tokenizer.json"
        ) from error


def _token_ids_only() -> Any:
    """A tokenizer of one word for the bridge, which is only ever given token ids.

    It wants one, and would load the real one a second time to add a beginning-of-sequence token to it.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Backend(WordLevel({"<none>": 0}, unk_token="<none>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path="token-ids",
        unk_token="<none>",
        eos_token="<none>",
        pad_token="<none>",
    )


def _hash_state(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _cached(name: str) -> bool:
    try:
        return hub.cached(name) is not None
    except ValueError:  # no possible name of a repository; the hub's client says so better
        return True


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
