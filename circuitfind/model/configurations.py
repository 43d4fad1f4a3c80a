"""From a model's configuration to its ``Shape``, without its weights: ``config.json``, sizes by name, or a built-in table.

JSON alone is read, and no code of a model is run. Sizes that decide what weights there are must be named: a configuration
that leaves them out would be another model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitfind.errors import ModelError, UnsupportedError, UsageError, nearest
from circuitfind.model.published import PUBLISHED, published
from circuitfind.model.shapes import LONGEST, Shape
from circuitfind.reading import MAX_SETTINGS, Unreadable, read_json

CONFIG = "config.json"
MOST = {
    "n_layers": 10_000,
    "n_heads": 10_000,
    "n_ctx": 2**40,
    "d_model": 10**6,
    "d_mlp": 10**8,
    "d_vocab": 10**8,
}
"""Beyond these a number is a mistake, and a plan for it would only fill memory; the largest models reach a tenth."""
MOST_EDGES = 10**9
"""Pairs of a writer and a reader that a table is made of; a model of 405 billion parameters has a third of it."""
SIZES = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx")
FLAGS = ("gated", "tied")
NEEDED = ("n_layers", "n_heads", "d_model", "d_vocab")


@dataclass(frozen=True)
class _Family:
    """What the configurations of a model type say by other names, or leave out.

    Attributes:
        kv_heads: Whether they may leave out ``num_key_value_heads``, which then are all heads.
        d_head: What ``head_dim`` is where they leave it out; None for ``d_model / n_heads``.
        tied: What ``tie_word_embeddings`` is where they leave it out.
        bias: What ``attention_bias`` is where they leave it out.
        same: What is alike in all models of the type.
    """

    kv_heads: bool = True
    d_head: int | None = None
    tied: bool = False
    bias: bool = False
    same: Mapping[str, Any] | None = None


_FAMILIES: dict[str, _Family] = {
    "gpt2": _Family(
        tied=True,
        bias=True,
        same={"norm_vectors": 2, "final_vectors": 2, "mlp_bias": True, "fused": True, "o_shared": True},
    ),
    "gpt_neox": _Family(
        bias=True, same={"norm_vectors": 2, "final_vectors": 2, "mlp_bias": True, "fused": True}
    ),
    "llama": _Family(same={"gated": True}),
    "mistral": _Family(kv_heads=False, same={"gated": True}),
    "qwen2": _Family(same={"gated": True, "qkv_bias": True, "o_bias": False}),
    "qwen3": _Family(d_head=128, same={"gated": True, "head_norms": True}),
    "gemma": _Family(kv_heads=False, d_head=256, tied=True, same={"gated": True}),
    "gemma2": _Family(
        kv_heads=False, d_head=256, tied=True, same={"gated": True, "norms": 4, "post_norms": True}
    ),
}
_OTHER_NAMES = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
"""How GPT-2 calls them."""


@dataclass(frozen=True)
class Configuration:
    """The sizes of a model that is not loaded.

    Attributes:
        name: What the user calls the model.
        shape: Its sizes.
        origin: Where they are from, in words: ``config.json of ./folder``, ``the built-in table (gpt2)``.
        folder: The folder beside whose ``config.json`` a tokenizer may lie.
    """

    name: str
    shape: Shape
    origin: str
    folder: Path | None = None


def read_configuration(path: Path, name: str | None = None) -> Configuration:
    """The configuration of a file, or of a folder with ``config.json``.

    Raises:
        ModelError: It is not there, damaged, or lacks a size.
        UnsupportedError: It is of a model that cannot be taken apart.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        config = read_json(file, MAX_SETTINGS)
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no file '{file}'", hint="give a config.json, or sizes such as n_layers=32"
        ) from error
    except (OSError, Unreadable) as error:
        raise ModelError(f"it cannot be read: {error}", where=str(file), hint="restore the file") from error
    if not isinstance(config, dict):
        raise ModelError("it is no mapping", where=str(file), hint="give the config.json of a model")
    return Configuration(name or str(path), shape_of(config, str(file)), f"{CONFIG} of {path}", file.parent)


def from_table(name: str) -> Configuration | None:
    """What the built-in table has for a hub name; None for nothing."""
    entry = published(name)
    if entry is None:
        return None
    return Configuration(name, shape_of(PUBLISHED[entry], entry), f"the built-in table ({entry})")


def with_sizes(base: Configuration | None, given: Sequence[str], name: str) -> Configuration:
    """A configuration with some sizes put in place of its own, or of sizes alone.

    Args:
        base: What is changed; None where sizes stand for themselves.
        given: ``KEY=VALUE``, with the keys of ``SIZES`` and ``FLAGS``; several with commas between them.
        name: What the user calls the model.

    Raises:
        UsageError: An unknown key, a value that is none, or not enough to go by.
    """
    sizes, flags = _named(given)
    if base is None:
        lacking = [key for key in NEEDED if key not in sizes]
        if lacking:
            raise UsageError(
                f"--model-config lacks {', '.join(lacking)}",
                hint="give sizes such as n_layers=32,n_heads=32,d_model=4096,d_mlp=11008,d_vocab=32000,gated=yes, "
                "or the path of a config.json",
            )
        n_heads, d_model = sizes["n_heads"], sizes["d_model"]
        shape = Shape(
            family="given",
            n_layers=sizes["n_layers"],
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_model=d_model,
            d_head=sizes.get("d_head") or _shared("--model-config", d_model, n_heads),
            d_mlp=4 * d_model,
            d_vocab=sizes["d_vocab"],
            d_vocab_out=sizes["d_vocab"],
            n_ctx=LONGEST,
        )
        origin = "sizes given"
    else:
        shape, origin = base.shape, f"{base.origin}, with sizes given"
        plain = shape.d_head * shape.n_heads == shape.d_model
        if plain and "d_head" not in sizes and {"n_heads", "d_model"} & sizes.keys():
            n_heads, d_model = sizes.get("n_heads", shape.n_heads), sizes.get("d_model", shape.d_model)
            sizes["d_head"] = _shared("--model-config", d_model, n_heads)
        if "n_heads" in sizes and "n_kv_heads" not in sizes and shape.n_kv_heads == shape.n_heads:
            sizes["n_kv_heads"] = sizes["n_heads"]
    if "d_vocab" in sizes:
        sizes["d_vocab_out"] = sizes["d_vocab"]
    if "n_ctx" in sizes and shape.positions:
        sizes["positions"] = sizes["n_ctx"]
    shape = replace(shape, **sizes, **flags)  # type: ignore[arg-type]  # sizes are numbers, flags are none
    return Configuration(
        name, _checked(shape, "--model-config"), origin, None if base is None else base.folder
    )


def _named(given: Sequence[str]) -> tuple[dict[str, int], dict[str, bool]]:
    """Sizes and flags of ``KEY=VALUE,KEY=VALUE``."""
    words = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    sizes: dict[str, int] = {}
    flags: dict[str, bool] = {}
    for text in (part.strip() for one in given for part in one.split(",")):
        key, equals, value = (part.strip() for part in text.partition("="))
        key = key.replace("-", "_")
        if not equals:
            raise UsageError(
                f"--model-config: '{text}' is neither a file nor KEY=VALUE",
                hint=f"give the path of a config.json, or sizes: {', '.join((*SIZES, *FLAGS))}",
            )
        if key not in (*SIZES, *FLAGS):
            near = nearest(key, (*SIZES, *FLAGS))
            known = ", ".join((*SIZES, *FLAGS))
            hint = f"did you mean '{near}'? Known: {known}" if near else f"known: {known}"
            raise UsageError(f"--model-config knows no '{key}'", hint=hint)
        if key in FLAGS:
            if value.lower() not in words:
                raise UsageError(f"--model-config {key}={value} is not yes or no", hint=f"give {key}=yes")
            flags[key] = words[value.lower()]
            continue
        digits = value.replace("_", "")
        if not digits.isdecimal() or len(digits) > 15 or (not int(digits) and key != "d_mlp"):
            raise UsageError(
                f"--model-config {key}={value} is no number of at least 1", hint=f"give one such as {key}=32"
            )
        sizes[key] = int(digits)
    return sizes, flags


# config.json.


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The sizes that the content of a ``config.json`` gives, of a Hugging Face or a TransformerLens-format model.

    Raises:
        ModelError: A size is missing, or is none.
        UnsupportedError: It is of a model type that is not known here.
    """
    if config.get("format") == "transformer-lens":
        inner = config.get("config")
        if not isinstance(inner, dict):
            raise ModelError("the key 'config' is missing", where=where, hint="it holds the model's sizes")
        return _checked(_native(_Reader(inner, where)), where)
    kind = config.get("model_type")
    if kind is None:
        raise ModelError(
            "the key 'model_type' is missing", where=where, hint="give the config.json of a language model"
        )
    if not isinstance(kind, str) or kind not in _FAMILIES:
        near = nearest(str(kind), _FAMILIES)
        raise UnsupportedError(
            f"models of type '{str(kind)[:60]}' are not planned for from their configuration",
            where=where,
            hint=(f"did you mean '{near}'? " if near else "")
            + f"Known: {', '.join(_FAMILIES)}; give others by --model-config n_layers=...,n_heads=...",
        )
    return _checked(_hf(kind, _Reader(config, where)), where)


class _Reader:
    """Reads sizes of a configuration."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self.where = where

    def get(self, key: str) -> Any:
        """A value by either of its names; None where it is missing or null."""
        found = self._config.get(key)
        return self._config.get(_OTHER_NAMES.get(key, key)) if found is None else found

    def number(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number.

        Raises:
            ModelError: It is missing and has no default, or is none.
        """
        found = self.get(key)
        if found is None and default is not None:
            return default
        if found is None:
            near = nearest(key, [str(known) for known in self._config])
            raise ModelError(
                f"the size '{key}' is missing" + (f" (nearest: '{near}')" if near else ""),
                where=self.where,
                hint="restore the file, or give sizes by --model-config n_layers=...,n_heads=...",
            )
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            raise ModelError(
                f"{key} is {str(found)[:60]!r}, which is no number of at least {least}",
                where=self.where,
                hint="restore the file",
            )
        return found

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            ModelError: It is something else.
        """
        found = self.get(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise ModelError(
                f"{key} is {str(found)[:60]!r}, and not true or false",
                where=self.where,
                hint="restore the file",
            )
        return found


def _hf(kind: str, read: _Reader) -> Shape:
    family = _FAMILIES[kind]
    if read.get("add_cross_attention"):
        raise UnsupportedError(
            "models with cross-attention cannot be taken apart", where=read.where, hint="use a language model"
        )
    n_heads, d_model = read.number("num_attention_heads"), read.number("hidden_size")
    groups = kind not in ("gpt2", "gpt_neox")
    kv_default = n_heads if family.kv_heads else None
    bias = read.flag("attention_bias", family.bias) if kind != "gpt2" else True
    n_ctx = read.number("max_position_embeddings", 1024 if kind == "gpt2" else 2048)
    d_head = read.number("head_dim", family.d_head or _shared(read.where, d_model, n_heads))
    found = Shape(
        family=kind,
        n_layers=read.number("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=read.number("num_key_value_heads", kv_default) if groups else n_heads,
        d_model=d_model,
        d_head=d_head if groups else _shared(read.where, d_model, n_heads),
        d_mlp=read.number("intermediate_size", 4 * d_model if kind == "gpt2" else None),
        d_vocab=read.number("vocab_size"),
        d_vocab_out=read.number("vocab_size"),
        n_ctx=min(n_ctx, LONGEST),
        parallel=kind == "gpt_neox" and read.flag("use_parallel_residual", True),
        tied=read.flag("tie_word_embeddings", family.tied),
        positions=n_ctx if kind == "gpt2" else 0,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=kind == "llama" and read.flag("mlp_bias", False),
    )
    return replace(found, **(family.same or {}))


def _native(read: _Reader) -> Shape:
    d_model, n_heads = read.number("d_model"), read.number("n_heads")
    norm = str(read.get("normalization_type")).upper()
    vectors = {"LN": 2, "RMS": 1}.get(norm, 0)
    alone = read.flag("attn_only", False)
    gated = read.flag("gated_mlp", False)
    n_ctx = read.number("n_ctx")
    d_vocab = read.number("d_vocab")
    standard = str(read.get("positional_embedding_type") or "standard").lower() == "standard"
    final = vectors
    if read.flag("final_rms", False) and norm not in ("LNPRE", "RMSPRE"):
        final = 1
    return Shape(
        family="transformer-lens",
        n_layers=read.number("n_layers"),
        n_heads=n_heads,
        n_kv_heads=read.number("n_key_value_heads", n_heads),
        d_model=d_model,
        d_head=read.number("d_head"),
        d_mlp=0 if alone else read.number("d_mlp", 4 * d_model),
        d_vocab=d_vocab,
        d_vocab_out=max(read.number("d_vocab_out", d_vocab, least=-1), 0) or d_vocab,
        n_ctx=min(n_ctx, LONGEST),
        gated=gated and not alone,
        causal=str(read.get("attention_dir") or "causal") == "causal",
        positions=n_ctx if standard else 0,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=not gated,
        mlp_norm=not gated and not alone and read.get("act_fn") == "solu_ln",
        norms=1 if alone else 2,
        norm_vectors=vectors,
        final_vectors=final,
    )


def _shared(where: str, d_model: int, n_heads: int) -> int:
    """Width of a head where heads share the stream's."""
    if d_model % n_heads:
        raise ModelError(
            f"{n_heads} heads do not divide a stream of width {d_model}",
            where=where,
            hint="correct one of the two, or give the width of a head",
        )
    return d_model // n_heads


def _checked(shape: Shape, where: str) -> Shape:
    """The shape, if there can be such a model."""
    for key, most in MOST.items():
        if getattr(shape, key) > most:
            raise ModelError(
                f"{key} of {getattr(shape, key)} is more than {most}, which no model has",
                where=where,
                hint="correct it",
            )
    if shape.n_heads % shape.n_kv_heads:
        raise ModelError(
            f"{shape.n_kv_heads} key/value heads cannot serve {shape.n_heads} heads alike",
            where=where,
            hint="the second must be a multiple of the first",
        )
    widths = shape.widths
    if shape.d_head > MOST["d_model"] or widths.writers * widths.readers * shape.n_layers > MOST_EDGES:
        raise ModelError(
            f"a model of {shape.n_layers} layers of {shape.n_heads} heads, each {shape.d_head} wide, is none",
            where=where,
            hint="correct the numbers",
        )
    return shape
