"""A case that ends its process, as a crash of a library does."""

from __future__ import annotations

import os
from dataclasses import dataclass

from circuitfind.check.outcome import Outcome, of_case
from circuitfind.check.pool import CaseJob
from circuitfind.engine.base import Bench


@dataclass(frozen=True)
class DyingCase(CaseJob):
    """The case called ``second`` never comes to its end; the others do at once."""

    def run(self, bench: Bench) -> Outcome:
        if self.case.label == "second":
            os._exit(7)
        return of_case(self.case, "as expected")
