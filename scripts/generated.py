"""What scripts that write pages from the code have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(wanted: Mapping[Path, str]) -> int:
    """Write the files, or with ``--check`` compare them: the exit code is 1 if some are stale."""
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    check = "--check" in sys.argv
    for path in stale:
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if stale and check else 0
