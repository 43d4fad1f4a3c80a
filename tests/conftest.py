"""What every test stands on: no network, few threads, a known seed, and shapes that are checked while the code runs."""

from __future__ import annotations

import os

# Before anything imports huggingface_hub, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception
from jaxtyping import install_import_hook

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float too, as for mypy


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's annotations, shapes included, at each call."""
    try:
        return _checked(function)
    except (
        BeartypeDecorHintPep3119Exception
    ):  # a protocol without isinstance, such as pydantic's ValidationInfo
        return function


# Before anything imports circuitfind. The name of this module under pytest is not known before it runs.
install_import_hook("circuitfind", f"{__name__}.check_types")

# Threads of several workers on the same cores wait for each other, and burn what they wait.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(2, (os.cpu_count() or 1) // WORKERS)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and the activation that transformer-lens 3.9 does not know."""
    no_gpu, solu = not torch.cuda.is_available(), _knows_solu()
    for item in items:
        if no_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))
        if not solu and "solu-ln" in item.name:
            item.add_marker(pytest.mark.skip(reason="this transformer-lens has no solu_ln"))


def _knows_solu() -> bool:
    from transformer_lens.model_bridge.sources.native import model

    return "solu_ln" in getattr(model, "_ACTIVATIONS", {"solu_ln": None})


pytest_plugins = ["tests.browser", "tests.finished", "tests.sweeps"]
"""Fixtures that several folders use. Where a module imports one, pytest takes it for another and makes it again."""

WHOLE_RUNS = (
    "check",
    "cli",
    "engine",
    "output/report",
    "output/test_exports_python.py",
    "output/test_figures.py",
    "output/test_notebook.py",
    "security",
    "resilience/test_faults.py",
    "resilience/test_kill.py",
    "resilience/test_numbers.py",
    "resilience/test_stretch.py",
    "test_api.py",
    "test_docs.py",
    "test_evidence.py",
    "methods/test_edge_pruning.py",
    "test_notebooks.py",
    "test_pipeline.py",
    "views/test_stage.py",
)
"""Tests that run whole commands or pipelines, over and over; half of their time would go into checking shapes."""


@pytest.fixture(autouse=True, scope="module")
def shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes are checked where functions are tested, and everywhere by ``make test-all``."""
    where = request.path.relative_to(Path(__file__).parent)
    whole = any(where.is_relative_to(part) for part in WHOLE_RUNS)
    everywhere = not request.config.option.markexpr
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", whole and not everywhere)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """No test depends on which tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of trained local models that CIRCUITFIND_MODELS names; without it the test is skipped."""
    named = os.environ.get("CIRCUITFIND_MODELS")
    if not named:
        pytest.skip("CIRCUITFIND_MODELS names no folder of models")
    folder = Path(named)
    assert folder.is_dir(), f"CIRCUITFIND_MODELS={named} is no folder"
    return folder
