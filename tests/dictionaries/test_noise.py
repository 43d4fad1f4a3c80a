"""Whatever stands in a file, reading it gives dictionaries or an error of ours."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.errors import CircuitfindError
from tests.dictionaries import files
from tests.dictionaries.files import D, weights
from tests.dictionaries.test_formats import write_pt

STRANGE: tuple[Any, ...] = (
    None,
    [],
    {},
    [1],
    {"a": 1},
    "",
    "x" * 500,
    -1,
    0,
    10**30,
    1.5,
    True,
    "\x00",
    "../..",
)


def read(where: Path) -> None:
    with contextlib.suppress(CircuitfindError):
        load_dictionaries(where)


def lens(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    return files.write_sae_lens(folder / "t", weights(d_out=D), "jumprelu_skip_transcoder")


def tracer(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    return files.write_set(folder / "t", [weights()], transcoders=["layer_0.safetensors"])


def cross(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    files.write_cross(folder / "t")
    return folder / "t"


def gemma_2(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    return files.write_gemma_2(folder / "t", weights(), affine=True)


def gemma(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    (folder / "t").mkdir()
    np.savez_compressed(folder / "t" / "params.npz", **files.gemma_arrays(weights()))
    (folder / "t" / "cfg.json").write_text('{"hook_name": "blocks.4.hook_mlp_out", "model_name": "a"}')
    return folder / "t"


def circuits(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    (folder / "t").mkdir()
    write_pt(folder / "t" / "a.pt", weights(), patch)
    return folder / "t"


FORMATS = [lens, tracer, cross, gemma_2, gemma, circuits]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", FORMATS)
def test_damaged_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]) -> None:
    where, chance = write(tmp_path, monkeypatch), random.Random(0)
    for path in sorted(where.iterdir()):
        whole = path.read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            start = chance.randrange(min(len(content), 1500))  # where the declarations are
            if chance.random() < 0.5:
                start = len(content) - 1 - start
            for i in range(start, min(len(content), start + chance.choice((1, 1, 3, 20)))):
                content[i] = chance.randrange(256)
            path.write_bytes(bytes(content))
            read(where)
        path.write_bytes(whole)
    assert load_dictionaries(where)


def variants(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in data.items():
        for strange in STRANGE:
            yield {**data, key: strange}
        if isinstance(value, dict):
            yield from ({**data, key: inner} for inner in variants(value))


@pytest.mark.parametrize("write", FORMATS[:5])
def test_strange_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]) -> None:
    where = write(tmp_path, monkeypatch)
    path = next(p for p in where.iterdir() if p.suffix in (".json", ".yaml"))
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    more = (
        "activation_fn",
        "activation_fn_kwargs",
        "hook_layer",
        "hook_head_index",
        "hf_hook_name",
        "circuitfind",
        "k",
    )
    extra = dict.fromkeys((*more, "model_from_pretrained_kwargs", "rescale_acts_by_decoder_norm"))
    for changed in variants({**extra, **data}):
        path.write_text(json.dumps(changed))
        read(where)


@pytest.mark.parametrize(
    "key", ["hook_point", "out_hook_point", "is_transcoder", "model_name", "hook_point_head_index"]
)
def test_strange_settings_of_a_pt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    for strange in STRANGE:
        read(write_pt(tmp_path / "a.pt", weights(), monkeypatch, **{key: strange}))
