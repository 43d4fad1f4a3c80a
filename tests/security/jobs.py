"""Work for workers. A module of its own, so that they import little."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitfind.engine.base import Needs


@dataclass(frozen=True)
class Where:
    """Says where its worker imports from of what is its working directory."""

    label: str = "where"

    @property
    def needs(self) -> Needs:
        return Needs()

    def run(self, bench: Any) -> list[str]:
        here = Path.cwd().resolve()
        return [path for path in sys.path if Path(path).resolve() == here]
