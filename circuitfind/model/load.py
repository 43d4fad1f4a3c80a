"""From a model's name to a ``Model``: the zoo, a local folder (Hugging Face or TransformerLens format), or the hub.

Weights are read from safetensors only. A pickle can run code while it is read, so it is refused wherever it is met.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuitfind.errors import ModelError, nearest
from circuitfind.model.bridge import Model
from circuitfind.zoo import ZOO, is_zoo, split_zoo

if TYPE_CHECKING:
    from circuitfind.zoo.planted import Planted

TL_FORMAT = "transformer-lens"
KNOWN_HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "EleutherAI/pythia-70m", "EleutherAI/pythia-160m")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_model(name: str, *, device: str = "auto") -> Model:
    """Load a model by zoo name, folder or hub name.

    Args:
        name: ``mini``, ``planted/induction`` (``planted/induction:7`` for seed 7), a folder, or a hub name.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ModelError: No such model, no network, a damaged or unsafe file.
        UnsupportedError: A model that cannot be taken apart.
    """
    where = pick_device(device)
    if is_zoo(name):
        return _load_zoo(name, where)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load_folder(folder, name, where)
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
        raise ModelError(f"there is no device '{device}' here: {str(error).splitlines()[0]}", hint="use --device cpu or auto") from error
    return found


def planted(name: str) -> Planted:
    """The planted model that a zoo name stands for, with its truth."""
    from circuitfind.zoo.planted import build

    kind, seed = split_zoo(name)
    return build(kind.removeprefix("planted/"), seed)


def _load_zoo(name: str, device: torch.device) -> Model:
    if name == "mini":
        from circuitfind.zoo.mini import weights_folder

        try:
            folder = weights_folder()
        except FileNotFoundError as error:
            raise ModelError(str(error), hint="reinstall circuitfind, or train it: python -m circuitfind.zoo.mini.train") from error
        return _load_hf(str(folder), name, device, fingerprint=_hash_files(folder), local=True)
    model = planted(name)
    digest = hashlib.sha256(json.dumps(model.config, sort_keys=True).encode())
    for key in sorted(model.state):
        digest.update(key.encode())
        digest.update(model.state[key].contiguous().numpy().tobytes())
    return _boot_native(model.config, model.state, name, device, digest.hexdigest(), source=f"zoo: {name}")


# Folders.


def _load_folder(folder: Path, name: str, device: torch.device) -> Model:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(
            f"'{name}' holds no config.json, so it is no model",
            hint="give a Hugging Face folder (config.json, model.safetensors) or a TransformerLens-format one",
        )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"config.json cannot be read: {error}", where=str(config_path), hint="restore the file") from error
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
        raise ModelError("there are no weights (*.safetensors)", where=str(folder), hint="copy model.safetensors there")
    for path in weights:
        _check_safetensors(path)
    fingerprint = _hash_files(folder)
    if config.get("format") == TL_FORMAT:
        return _load_tl(folder, config, weights, name, device, fingerprint)
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


def _hash_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]):
        if not path.is_file():
            continue
        digest.update(path.name.encode())
        with path.open("rb") as handle:
            while chunk := handle.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


# TransformerLens format: the parameter names of HookedTransformer.


def _load_tl(
    folder: Path, config: Mapping[str, Any], weights: list[Path], name: str, device: torch.device, fingerprint: str
) -> Model:
    from safetensors.torch import load_file

    if not isinstance(config.get("config"), dict):
        raise ModelError("the key 'config' is missing", where=str(folder / "config.json"), hint="it holds the model's sizes")
    state: dict[str, Tensor] = {}
    for path in weights:
        state.update(load_file(path))
    return _boot_native(config["config"], state, name, device, fingerprint, source=f"folder: {folder.resolve()}")


def _boot_native(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    device: torch.device,
    fingerprint: str,
    *,
    source: str,
) -> Model:
    with _quiet():
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        try:
            settings = TransformerBridgeConfig(**{**config, "device": str(device)})
            bridge = TransformerBridge.boot_native(settings)
        except (TypeError, ValueError, KeyError, NotImplementedError) as error:
            raise ModelError(
                f"the configuration is not one of a TransformerLens model: {error}", where=name, hint="compare its config.json"
            ) from error
    own = bridge.state_dict()
    found = _native_state(state, own, name)
    bridge.load_state_dict(found)
    with _quiet():
        bridge.to(device)
    out = int(config.get("d_vocab_out") or config["d_vocab"])
    return Model(bridge, name=name, fingerprint=fingerprint, tokenizer=None, source=source, n_vocab_out=out)


def _native_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """HookedTransformer's parameters under the names and in the shapes of the native bridge."""
    found: dict[str, Tensor] = {}
    for key, wanted in own.items():
        source, transform = _legacy_name(key)
        if source not in state:
            if source.endswith((".b_O", ".b_Q", ".b_K", ".b_V", ".b_in", ".b_out", ".b_U")):
                found[key] = torch.zeros_like(wanted)
                continue
            near = nearest(source, state)
            raise ModelError(
                f"the weights lack '{source}'" + (f" (nearest: '{near}')" if near else ""),
                where=name,
                hint="the folder's config.json and its weights do not belong together",
            )
        tensor = transform(state[source])
        if tensor.shape != wanted.shape:
            raise ModelError(
                f"'{source}' has the shape {tuple(state[source].shape)}, which config.json does not give",
                where=name,
                hint="the folder's config.json and its weights do not belong together",
            )
        found[key] = tensor.to(wanted.dtype).contiguous()
    return found


def _legacy_name(key: str) -> tuple[str, Any]:
    """The HookedTransformer name behind a native bridge's key, and how its tensor is turned."""
    parts = key.split(".")
    kind = parts[-1]
    if parts[0] in ("embed", "pos_embed"):
        return f"{parts[0]}.{'W_E' if parts[0] == 'embed' else 'W_pos'}", lambda t: t
    if parts[0] == "unembed":
        return ("unembed.W_U", lambda t: t.T) if kind == "weight" else ("unembed.b_U", lambda t: t)
    if "ln" in parts[-2]:
        return ".".join([*parts[:-1], "w" if kind == "weight" else "b"]), lambda t: t
    head = ".".join(parts[:-2])
    part = parts[-2].removeprefix("fc_")
    if part in ("q", "k", "v"):
        if kind == "weight":
            return f"{head}.W_{part.upper()}", lambda t: t.transpose(1, 2).flatten(0, 1)
        return f"{head}.b_{part.upper()}", lambda t: t.flatten()
    if part == "o":
        return (f"{head}.W_O", lambda t: t.flatten(0, 1).T) if kind == "weight" else (f"{head}.b_O", lambda t: t)
    return (f"{head}.W_{part}", lambda t: t.T) if kind == "weight" else (f"{head}.b_{part}", lambda t: t)


# Hugging Face format, from a folder or from the hub.


def _load_hub(name: str, device: torch.device) -> Model:
    return _load_hf(name, name, device, fingerprint=None, local=False)


def _load_hf(path: str, name: str, device: torch.device, *, fingerprint: str | None, local: bool) -> Model:
    with _quiet():
        from transformers import AutoModelForCausalLM

        try:
            hf_model = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=local or _offline(), use_safetensors=True, attn_implementation="eager", dtype=torch.float32
            )
        except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own, by version
            raise _hf_error(name, error, local) from error
        tokenizer = _hf_tokenizer(path, local)
        from transformer_lens.model_bridge import TransformerBridge

        hf_model.eval()
        try:
            bridge = TransformerBridge.boot_transformers(
                path, hf_model=hf_model, tokenizer=_token_ids_only(), device=str(device), dtype=torch.float32
            )
        except Exception as error:
            raise ModelError(
                f"TransformerLens cannot wrap '{name}': {_first_line(error)}",
                hint="see `circuitfind doctor` for versions; supported families are listed in the README",
            ) from error
    commit = getattr(hf_model.config, "_commit_hash", None)
    return Model(
        bridge,
        name=name,
        fingerprint=fingerprint or commit or _hash_state(hf_model.state_dict()),
        tokenizer=None if tokenizer is None else HFTokenizer(tokenizer),
        source=f"folder: {Path(path).resolve()}" if local and name != "mini" else ("zoo: mini" if local else f"hub: {path}@{commit}"),
    )


def _hf_error(name: str, error: Exception, local: bool) -> ModelError:
    text = _first_line(error)
    if local:
        return ModelError(f"the folder cannot be loaded: {text}", where=name, hint="it needs config.json and matching model.safetensors")
    near = nearest(name, [*ZOO, *KNOWN_HUB])
    hint = "give a zoo name (circuitfind list models), a folder, or a hub name; hub names need the network or a filled cache"
    if near and near != name:
        hint = f"did you mean '{near}'? Or " + hint
    if "safetensors" in text and "does not appear to have" in text:
        return ModelError(f"'{name}' has no safetensors weights on the hub; pickles are refused", hint="convert it and give the folder")
    return ModelError(f"cannot find the model '{name}': it is not in the zoo, there is no such folder, and the hub did not give it", hint=hint, details=[text])


def _hf_tokenizer(path: str, local: bool) -> Any | None:
    from transformers import AutoTokenizer

    folder = Path(path)
    if local and not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=local or _offline())
    except Exception as error:
        raise ModelError(f"the tokenizer cannot be read: {_first_line(error)}", where=path, hint="restore tokenizer.json") from error


def _token_ids_only() -> Any:
    """A tokenizer of one word for the bridge, which is only ever given token ids.

    It wants one, and would load the real one a second time to add a beginning-of-sequence token to it.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Backend(WordLevel({"<none>": 0}, unk_token="<none>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, name_or_path="token-ids", unk_token="<none>", eos_token="<none>", pad_token="<none>"
    )


def _hash_state(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars, warnings and logs out of our streams."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class HFTokenizer:
    """A fast Hugging Face tokenizer behind our protocol (task/prompts.py)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.n_vocab = len(tokenizer)

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """(token id, start, end) with character offsets, without special tokens."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(i, a, b) for i, (a, b) in zip(found["input_ids"], found["offset_mapping"], strict=True)]

    def piece(self, token: int) -> str:
        """The token as it is stored, such as ``ĠMary``."""
        return str(self._tokenizer.convert_ids_to_tokens(token))

    @property
    def bos(self) -> int | None:
        """The id that the tokenizer itself puts in front of a text, or None."""
        ids = self._tokenizer("a")["input_ids"]
        bos = self._tokenizer.bos_token_id
        return int(bos) if bos is not None and ids and ids[0] == bos else None
