"""Pictures: DOT text through Graphviz's ``dot`` to SVG, PNG and PDF.

The only module that needs a program from outside. Everything else works without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from circuitfind.errors import RunError, UsageError, did_you_mean
from circuitfind.output.files import write_atomic

FORMATS = ("svg", "png", "pdf")

_DPI = 192
"""Of PNG files; enough for a full column in print."""

# dot's routing of curves fails on rare graphs; straighter lines always come out.
_SPLINES = ("true", "polyline", "line")


def dot_binary() -> Path | None:
    """Graphviz's ``dot`` on the PATH, or None."""
    found = shutil.which("dot")
    return Path(found) if found else None


def render(
    dot_text: str, path: Path, formats: Sequence[str] = ("svg",), *, timeout: float = 120.0
) -> list[Path]:
    """Draw ``dot_text`` into one file for each format, named ``path`` with the format's suffix.

    All formats are drawn before the first file is written, so either all files are new or none is.

    Raises:
        UsageError: A format that is not known.
        RunError: ``dot`` is missing, fails, or takes longer than ``timeout`` seconds.
    """
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown picture format '{name}'", hint=did_you_mean(name, FORMATS))
    binary = dot_binary()
    if binary is None:
        raise RunError("Graphviz's 'dot' is not installed, so no picture can be drawn", hint=install_hint())
    drawn = {name: _draw(binary, dot_text, name, timeout) for name in dict.fromkeys(formats)}
    return [write_atomic(path.with_name(f"{path.stem}.{name}"), data) for name, data in drawn.items()]


def svg_of(dot_text: str, *, timeout: float = 120.0) -> str:
    """The text of ``dot_text`` as SVG, for what shows pictures without files.

    Raises:
        RunError: As for ``render``.
    """
    binary = dot_binary()
    if binary is None:
        raise RunError("Graphviz's 'dot' is not installed, so no picture can be drawn", hint=install_hint())
    return _draw(binary, dot_text, "svg", timeout).decode("utf-8")


def install_hint() -> str:
    """How to install Graphviz here, and that little is lost without it."""
    if sys.platform == "darwin":
        command = "brew install graphviz"
    elif sys.platform == "win32":
        command = "choco install graphviz"
    else:
        known = {"apt-get": "sudo apt-get install graphviz", "dnf": "sudo dnf install graphviz"}
        command = next((text for tool, text in known.items() if shutil.which(tool)), "")
    if not command or (os.environ.get("CONDA_PREFIX") and shutil.which("conda")):
        command = "conda install -c conda-forge graphviz"
    return f"install it with `{command}`; everything but pictures works without it, the DOT text included"


def _draw(binary: Path, dot_text: str, name: str, timeout: float) -> bytes:
    said = ""
    for splines in _SPLINES:
        code, data, said = _run_dot(binary, dot_text, name, splines, timeout)
        if code == 0 and data:
            return _TIDY.get(name, bytes)(data)
    raise RunError(
        "'dot' could not draw the circuit",
        hint="prune to fewer edges, or give the DOT text to another program",
        details=said.strip().splitlines()[:5],
    )


def _run_dot(binary: Path, dot_text: str, name: str, splines: str, timeout: float) -> tuple[int, bytes, str]:
    command = [str(binary), f"-T{name}"]
    if name == "png":
        command.append(f"-Gdpi={_DPI}")
    # Changed in the text, because a graph's own attribute wins over -G.
    text = dot_text.replace("splines=true", f"splines={splines}", 1)
    with tempfile.TemporaryDirectory(prefix="circuitfind-dot-") as folder:
        target = Path(folder) / f"circuit.{name}"
        try:
            done = subprocess.run(
                [*command, "-o", str(target)],
                input=text.encode("utf-8"),
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(
                f"'dot' took longer than {timeout:g} seconds to draw the circuit",
                hint="prune to fewer edges; the DOT text is complete and can be drawn by another program",
            ) from error
        except OSError as error:
            raise RunError(
                f"'dot' cannot be started: {error}", where=str(binary), hint=install_hint()
            ) from error
        data = target.read_bytes() if target.is_file() else b""
    return done.returncode, data, done.stderr.decode("utf-8", errors="replace")


def _tidy_svg(data: bytes) -> bytes:
    """Drop the link to the document type on the web, so that the file stands alone wherever it is put."""
    return re.sub(rb"<!DOCTYPE[^>]*>\s*", b"", data, count=1)


def _tidy_pdf(data: bytes) -> bytes:
    """Without the time of drawing, so that the same circuit gives the same file; as long as before, as offsets stand in it."""
    return re.sub(rb"(/CreationDate \(D:)\d{14}", rb"\g<1>19700101000000", data)


_TIDY = {"svg": _tidy_svg, "pdf": _tidy_pdf}
