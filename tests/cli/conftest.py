"""Commands run in a folder of their own, on models of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.helpers import Cli, Toy


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in its own folder, with none of the user's settings."""
    for name in ("CIRCUITFIND_OUTPUTS", "CIRCUITFIND_TASKS", "CIRCUITFIND_CONFIG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs commands."""
    return Cli(capsys, tmp_path)


@pytest.fixture(scope="session")
def toy_parts() -> tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Config, weights and pairs (as words) of the planted induction model."""
    from circuitfind.zoo.planted import build

    made = build("induction")

    def words(tokens: tuple[int, ...]) -> str:
        return " ".join(f"w{token}" for token in tokens)

    pairs = [
        {
            "clean": words(pair.clean),
            "corrupted": words(pair.corrupted),
            "answer": f"w{pair.answer}",
            "wrong": f"w{pair.wrong}",
        }
        for pair in made.pairs(12)
    ]
    return made.config, made.state, pairs


def write_tl(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    """A folder in TransformerLens format."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"format": "transformer-lens", "config": config}))
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def toy(
    tmp_path: Path, toy_parts: tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, Any]]]
) -> Toy:
    """A model in a folder, and task files for it."""
    config, state, pairs = toy_parts
    vocab = [f"w{number}" for number in range(config["d_vocab"])]
    return Toy(tmp_path, write_tl(tmp_path / "model", config, state), vocab, pairs)
