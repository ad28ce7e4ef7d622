"""How large a report is and how soon its page can be used: 10 systems x 16 machines x 4 seeds, made up, in a real browser.

Usage: python benchmarks/report.py [--page index.html] [--runs 5]

Without --page the made-up run of tests/made_up_run.py is built first (about a minute). Two times are taken from the start of the
navigation, by the page's own clock, in a fresh browser context each: until the page answers (its script has run, links and tables work) and
until the first figure is drawn. The browser is Debian's chromium, without a GPU and without a network.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asdflow.report.build import build_report

from tests.made_up_run import BIG, made_up_inputs
from tests.test_report_browser import ARGUMENTS, CHROMIUM

FIRST_FIGURE = """() => new Promise((done) => {
  const look = () => document.querySelector('figure.plot .main-svg') ? done(performance.now()) : requestAnimationFrame(look);
  look();
})"""


def open_once(browser: Browser, page_file: Path) -> tuple[float, float]:
    """Seconds until the page answers, and until its first figure is drawn."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(page_file.as_uri(), wait_until="commit")
    drawn = page.evaluate(FIRST_FIGURE)
    answers = page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive")
    context.close()
    return answers / 1000, drawn / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="measure this report instead of the made-up one")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        page = options.page
        if page is None:
            page, start = Path(scratch) / "index.html", time.perf_counter()
            inputs = made_up_inputs(Path(scratch) / "run", BIG, replicates=10)
            print(f"made up in {time.perf_counter() - start:.0f} s")
            start = time.perf_counter()
            build_report(inputs, page)
            print(f"built in {time.perf_counter() - start:.0f} s")
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        times = [open_once(browser, page.resolve()) for _ in range(options.runs)]
        print(f"{page.stat().st_size / 1e6:.1f} MB")
        for name, values in zip(("page answers", "first figure"), zip(*times, strict=True), strict=True):
            print(
                f"{name}: median {statistics.median(values):.2f} s, slowest {max(values):.2f} s of {len(values)}"
            )
        browser.close()


if __name__ == "__main__":
    main()
