"""One HTML file from data and scripts: nothing is loaded, and nothing in the data can be markup or code."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import circuitfind

ASSETS = Path(__file__).parent / "assets"

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(title: str, data: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """A page with a title and a section for each one that the scripts register.

    The page may run its own scripts only, told by their hashes, and may load nothing at all.

    Args:
        title: Of the page, as text.
        data: What the scripts show, as ``CF.data``: anything that JSON holds. NaN and infinity become null.
        scripts: Names of files in ``assets``, run in this order behind ``core.js``.
    """
    shown = html.escape(title)
    sources = [asset("core.js"), *(asset(name) for name in scripts)]
    hashes = " ".join(f"'sha256-{_digest(source)}'" for source in sources)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    policy += "; base-uri 'none'; form-action 'none'"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta name="generator" content="circuitfind {circuitfind.__version__}">',
        f"<title>{shown}</title>",
        f"<style>\n{asset('core.css')}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{shown}</h1></header>",
        '<nav aria-label="sections"></nav>',
        "<main><noscript>This page draws itself with JavaScript, which is switched off here.</noscript></main>",
        f'<script type="application/json" id="data">{json_text(data)}</script>',
        *(f"<script>{source}</script>" for source in sources),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def json_text(data: Any) -> str:
    """JSON that stands inside a ``<script>`` element: no character in it can end the element or begin another."""
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    # Lone surrogates, which JSON may name and UTF-8 cannot hold.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def asset(name: str) -> str:
    """A file that pages are made of."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data
