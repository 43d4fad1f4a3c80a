"""A real browser for tests of pages: headless Chromium, with what it complains of and what it asks the network for.

A plugin: ``tests/conftest.py`` names it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The system's Chromium: ``$CHROMIUM``, else the first on the path."""
    named = os.environ.get("CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for the whole session; the tests that use it are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = executable()
    if path is None:
        pytest.skip("there is no Chromium here (name one with $CHROMIUM)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@dataclass
class Opened:
    """A page that is open.

    Attributes:
        page: Playwright's.
        complaints: What the console said as a warning or an error, and exceptions that nothing caught.
        requests: Addresses that were asked for beside the page itself.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def fine(self) -> None:
        """Nothing was complained of and nothing was loaded."""
        assert self.complaints == []
        assert self.requests == []

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.page.inner_text(selector))


@contextmanager
def opened(
    browser: Any, address: Path | str, *, width: int = 1280, height: int = 800, **options: Any
) -> Iterator[Opened]:
    """A file or an address, open and drawn.

    Args:
        browser: The fixture.
        address: A file, or where a server listens.
        width, height: Of the window.
        options: More of Playwright's ``new_context``: ``color_scheme``, ``reduced_motion``, ``has_touch``.
    """
    url = address.resolve().as_uri() if isinstance(address, Path) else address
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    found = Opened(context.new_page())
    found.page.set_default_timeout(10_000)
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on(
        "console",
        lambda message: (
            found.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    found.page.on(
        "request",
        lambda request: None if request.url.split("#")[0] == url else found.requests.append(request.url),
    )
    try:
        found.page.goto(url, wait_until="load")
        found.page.wait_for_selector("html[data-ready=yes]")
        yield found
    finally:
        context.close()
