"""The documentation site: every page is in it, links and anchors lead somewhere, and no page asks another host for anything."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from circuitfind.methods import METHODS, options_of

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def without_code(text: str) -> str:
    """A page without its blocks and spans of code."""
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", "", text, flags=re.DOTALL | re.MULTILINE)
    )


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub and MyST make them."""
    text = re.sub(
        r"^( *)```.*?^\1``` *$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    found: dict[str, int] = {}
    out = set()
    for title in re.findall(r"^#{1,4} +(.+?) *$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        out.add(f"{slug}-{number}" if number else slug)
    return out


def listed() -> list[Path]:
    """The pages of all toctrees."""
    found: list[Path] = []
    for page in PAGES:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            names = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(":")]
            for name in names:
                if "*" in name:
                    found += [p for p in sorted(page.parent.glob(f"{name}.md")) if p != page]
                else:
                    found.append((page.parent / f"{name}.md").resolve())
    return found


def test_every_page_is_in_one_toctree() -> None:
    found = listed()
    assert not [str(p) for p in found if not p.is_file()], "listed, and not there"
    missing = {p.relative_to(DOCS).as_posix() for p in PAGES} - {
        p.relative_to(DOCS).as_posix() for p in found
    }
    assert missing == {"index.md"}, "list new pages in a toctree of docs/index.md"
    assert len(found) == len(set(found)), "a page is listed twice"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_anchors_are_there(page: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))
    ):
        there = (page.parent / target).resolve() if target else page
        assert anchor in anchors(there), (
            f"{page.name} links to {target}#{anchor}; there are {sorted(anchors(there))}"
        )


def test_what_counts_as_an_anchor(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One *two* (`three_x.py`)\n\n```\n# no heading\n```\n## Same\n## Same\n##### Deep\n",
        encoding="utf-8",
    )
    assert anchors(page) == {"one-two-three_xpy", "same", "same-1"}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("reference_pages")


def test_pages_from_the_code_are_up_to_date(script: ModuleType) -> None:
    for path, text in script.wanted().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is stale: run python scripts/reference_pages.py"
        )


def test_every_option_of_every_method_is_told(script: ModuleType) -> None:
    page = script.methods_page()
    for name in METHODS:
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for option in options_of(name):
            assert re.search(rf"\| `{option.replace('_', '-')}` \|[^|]*\| [^|]{{8,}}", part), (
                f"{name}: {option}"
            )


def test_docstrings_become_markdown(script: ModuleType) -> None:
    text = "Of ``a<q>`` and <v>:\n\n    p = <x>\n\n    q = 2\n\nThen\n    run on <y>."
    assert script.markdown(text) == (
        "Of `a<q>` and &lt;v>:\n\n    p = <x>\n\n    q = 2\n\nThen\n    run on &lt;y>."
    )
    told = script.attributes(
        "One.\n\n    Attributes:\n        a, b: First\n            and more.\n        c: Last.\n    "
    )
    assert told == {"a": "First and more.", "b": "First and more.", "c": "Last."}


class _Requests(HTMLParser):
    """What a page makes a browser load, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "a":
            self.links.append(found.get("href", ""))
        elif tag == "link" and not {"search", "next", "prev", "index"} & set(found.get("rel", "").split()):
            self.loads.append(found.get("href", ""))
        else:
            self.loads += [found[name] for name in ("src", "srcset", "data", "poster") if name in found]


def read(path: Path) -> _Requests:
    parser = _Requests()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def is_elsewhere(address: str) -> bool:
    return bool(re.match(r"(?:[a-z]+:)?//", address))


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """As `make docs` builds it: no warning, no request to another host, no link to nowhere."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(site)]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = {path.resolve(): read(path) for path in site.rglob("*.html")}
    assert len(pages) >= len(PAGES)
    for path, page in pages.items():
        assert not [a for a in page.loads if is_elsewhere(a)], path
        for link in page.links:
            target, _, anchor = link.partition("#")
            if is_elsewhere(link) or link.startswith("mailto:"):
                continue
            there = (path.parent / target).resolve() if target else path
            assert there.is_file(), f"{path.name} links to {link}"
            if anchor and there in pages:
                assert anchor in pages[there].ids, f"{path.name} links to {link}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text), style
