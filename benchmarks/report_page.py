"""How fast a report is in a browser: `python benchmarks/report_page.py [REPORT.html ...]`.

Without a file it measures the page of a made-up circuit of 60 nodes and 300 edges in a model of GPT-2's shape, whose 32,491
edges are scored. Of each page: its size; seconds from the start of loading to the first frame with everything drawn; seconds
to prune anew, as the slider does; and the frames while the page is scrolled and a node is dragged. The bar is to open in less
than a second.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.browser import executable
from tests.output.circuits import GPT2
from tests.output.report.pages import graph_page, scores_of, wide_circuit

BAR = 1.0
REPEATS = 5

OPENED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() / 1000))))"
PRUNED = """(n) => new Promise((done) => { const start = performance.now(); CF.shown.setSize(n);
  requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - start) / 1000))); })"""
FRAMES = """() => { window.frames_ = []; window.counting = true; let last = performance.now();
  const tick = (now) => { window.frames_.push(now - last); last = now; if (window.counting) requestAnimationFrame(tick); };
  requestAnimationFrame(tick); }"""
STOP = "() => { window.counting = false; return window.frames_.slice(1); }"


def frames(page: Any, work: Any) -> str:
    """Median and longest frame while something is done."""
    page.evaluate(FRAMES)
    work()
    found = sorted(page.evaluate(STOP))
    late = sum(t > 50 for t in found)
    return f"{statistics.median(found):.0f} ms a frame, longest {found[-1]:.0f} ms, {late} of {len(found)} above 50 ms"


def drag(page: Any) -> None:
    """The node with the most edges, round and about."""
    page.evaluate("document.querySelector('#graph').scrollIntoView()")
    box = page.locator(".node rect").nth(page.locator(".node").count() // 2).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(60):
        page.mouse.move(x + 2 * (i % 30), y + i % 20)
    page.mouse.up()


def scroll(page: Any) -> None:
    """From the top to the bottom."""
    for _ in range(60):
        page.mouse.wheel(0, 120)


def measure(driver: Any, path: Path) -> bool:
    """Print the figures of a page; whether it opens fast enough."""
    started = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
    opened, pruned = [], []
    for _ in range(REPEATS):
        page = started.new_page(viewport={"width": 1280, "height": 800})
        page.goto(path.resolve().as_uri(), wait_until="load")
        opened.append(page.evaluate(OPENED))
        has = page.evaluate(
            "Boolean(window.CF && CF.shown) || typeof CF !== 'undefined' && Boolean(CF.shown)"
        )
        if has:
            pruned.append(page.evaluate(PRUNED, 300))
            page.evaluate("CF.shown.setSize(null)")
        last = page
        if len(opened) < REPEATS:
            page.close()
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    print(
        f"  open    {min(opened):.2f} s at best, {statistics.median(opened):.2f} s in the middle of {REPEATS}"
    )
    if pruned:
        print(f"  prune   {statistics.median(pruned):.3f} s to the 300 strongest edges")
        print(f"  drag    {frames(last, lambda: drag(last))}")
    last.mouse.move(20, 300)
    print(f"  scroll  {frames(last, lambda: scroll(last))}")
    started.close()
    return min(opened) < BAR


def main() -> None:
    from playwright.sync_api import sync_playwright

    if executable() is None:
        sys.exit("there is no Chromium here (name one with $CHROMIUM)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        paths = [Path(name) for name in sys.argv[1:]]
        if not paths:
            scores = scores_of(GPT2)
            paths = [graph_page(Path(folder) / "made-up.html", wide_circuit(scores, 60, 300), scores)]
        fast = [measure(driver, path) for path in paths]
    sys.exit(0 if all(fast) else f"a page takes more than {BAR:g} s to open")


if __name__ == "__main__":
    main()
