"""Constants and small value types that every part of the project shares. Imports nothing of ours but errors."""

from __future__ import annotations

import os
from typing import Literal, get_args

Ablation = Literal["resample", "mean", "zero", "optimal"]
Direction = Literal["noising", "denoising"]
Level = Literal["node", "edge"]
Positions = Literal["none", "all", "named"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Nodes = Literal["heads,mlps", "heads,neurons", "heads,features", "features"]
Errors = Literal["frozen", "recomputed"]
Controls = Literal["none", "cheap", "full"]

ABLATIONS: tuple[str, ...] = get_args(Ablation)
DIRECTIONS: tuple[str, ...] = get_args(Direction)
POSITIONS: tuple[str, ...] = get_args(Positions)
PRECISIONS: tuple[str, ...] = get_args(Precision)
NODES: tuple[str, ...] = get_args(Nodes)
ERRORS: tuple[str, ...] = get_args(Errors)
CONTROLS: tuple[str, ...] = get_args(Controls)

DEFAULT_METHOD = "hybrid"
"""How `discover` scores edges when nothing else is asked for."""

DEFAULT_UNIT_METHOD = "eap"
"""The same where neurons or features are nodes."""

UNIT_METHODS = ("eap", "eap-ig", "clean-corrupted", "relp", "gim", "hybrid", "ensemble")
"""Methods that score edges into and out of neurons and features."""

CROSS_METHODS = (
    "eap",
    "eap-ig",
    "eap-ig-activations",
    "relp",
    "gim",
    "hybrid",
    "acdc",
    "activation-patching",
    "edge-patching",
    "path-patching",
)
"""Methods that compare two models: those that take no gradient in the run of the other one and learn nothing."""

CROSS_PROPOSAL = "relp"
"""What ``hybrid`` proposes edges by there: between two models embeddings are often the same, so that ``eap-ig`` has no path to
integrate over, and a part that writes much in one of them hides behind the slope of a norm."""

DEFAULT_EVALUATIONS = 2000
"""Circuits that pruning tries at the most."""

DEFAULT_TARGET = 0.9
"""Faithfulness that pruning aims at."""

DEFAULT_MIN_ACCURACY = 0.75
"""Share of prompt pairs that a model must answer rightly before a circuit is looked for (the bar of MIB)."""

DEFAULT_RATE = 0.05
"""False-discovery rate of a search for backups."""

DEFAULT_MIN_SHARE = 0.03
"""A component is a backup when it surely takes over at least this share of what was lost."""

DEFAULT_CONTROLS: Controls = "cheap"
"""How thoroughly a circuit is held against controls."""

SCHEMA_VERSION = 1
"""Version of the JSON that circuits, scores and manifests are written in."""

MODELS_VARIABLE = "CIRCUITFIND_MODELS"
"""Environment variable that names a folder of local models for the tests."""


def offline() -> bool:
    """Whether the network is switched off for the client of the Hugging Face hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
