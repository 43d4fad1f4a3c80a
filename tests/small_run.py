"""One small run that several modules of tests look at, made once a process. It is not to be changed."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache

from circuitfind.api import discover
from circuitfind.summary import Discovery


@lru_cache(maxsize=1)
def small_run() -> Discovery:
    """A model with written weights that has a head and a backup for it; with evidence, without pictures."""
    outputs = tempfile.mkdtemp(prefix="circuitfind-tests-")
    atexit.register(shutil.rmtree, outputs, ignore_errors=True)
    return discover("gated-backup", outputs=outputs, count=8, formats=(), views=False)
