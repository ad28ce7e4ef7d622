"""The report of ten systems, sixteen machines and four seeds stays small and opens without building what is not shown."""

from pathlib import Path

import pytest
from asdflow.report.build import build_report

from tests.made_up_run import BIG, made_up_inputs
from tests.test_report_browser import CHROMIUM, Visit, browser, show_all_figures

__all__ = ["browser"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    build_report(made_up_inputs(folder, BIG, replicates=10), folder / "index.html")
    return folder / "index.html"


@pytest.mark.slow
def test_the_file_is_below_forty_megabytes(page: Path):
    assert 6e6 < page.stat().st_size < 40e6


@pytest.mark.slow
@pytest.mark.skipif(
    not CHROMIUM.exists(), reason="Debian's chromium is not installed (apt-get install chromium)"
)
def test_opening_builds_the_first_view_only(browser, page: Path):
    visit = Visit(browser, page, viewport={"width": 1280, "height": 900})
    shown = visit.open("")
    assert shown.evaluate("document.querySelectorAll('main > section').length") == 1
    assert shown.evaluate("document.querySelectorAll('*').length") < 8000
    assert shown.locator("audio").count() == 0
    show_all_figures(shown)
    assert shown.locator(".heat tbody td").count() == 160
    shown.locator("nav a", has_text="machine07").click()
    show_all_figures(shown)
    assert shown.evaluate("document.querySelectorAll('main > section').length") == 2
    assert shown.locator("section.view:not([hidden]) audio").count() >= 4
    assert visit.complaints == []
    visit.context.close()
