"""The report in a real browser, cut off from any network: every view opens, shows its figures, plays, and is accessible."""

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from asdflow.report.build import build_report
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from scipy.stats import hmean

from tests.made_up_run import ODD_NAMES, Size, made_up_inputs

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason="Debian's chromium is not installed (apt-get install chromium)"
)

TINY = Size(machines=("bearing", "fan"), seconds=0.5)
MACHINE = "made_up/machine/fan"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    build_report(made_up_inputs(folder, TINY), folder / "report" / "index.html")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page that lets nothing through to a network and keeps every complaint."""

    def __init__(self, browser: Browser, file: Path, **context: Any) -> None:
        self.address = file.as_uri()
        self.complaints: list[str] = []
        self.context = browser.new_context(offline=True, accept_downloads=True, **context)
        self.page: Page = self.context.new_page()
        self.page.route(
            "**/*",
            lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort(),
        )
        self.page.on(
            "console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("requestfailed", lambda r: self.complaints.append(f"failed: {r.url[:80]}"))

    def open(self, view: str) -> Page:
        """Open the file at a view, or, where it is open already, go to the view by its address."""
        if self.page.url.startswith(self.address):
            self.page.evaluate("v => { location.hash = v; }", view)
            self.page.wait_for_function(
                "v => document.querySelector('section.view:not([hidden])').dataset.view === v", arg=view
            )
        else:
            self.page.goto(f"{self.address}#{view}")
        return self.page

    def views(self) -> list[str]:
        return [link.get_attribute("href")[1:] for link in self.page.query_selector_all("nav a")]  # type: ignore[index]


@pytest.fixture
def visit(browser: Browser, results: Path) -> Iterator[Visit]:
    visit = Visit(browser, results / "report" / "index.html", viewport={"width": 1280, "height": 900})
    yield visit
    visit.context.close()


def show_all_figures(page: Page) -> None:
    """Scroll each figure of the shown view into sight and wait until it is drawn."""
    for figure in page.query_selector_all("section.view:not([hidden]) figure.plot"):
        figure.scroll_into_view_if_needed()
        page.wait_for_function("f => f.dataset.drawn === 'yes'", arg=figure)


MARKS = ".trace path, .trace rect, .trace image, .points path, .scatterlayer path, .barlayer path"
VISIBLE_MARK = """(figure, marks) => [...figure.querySelectorAll(marks)].some((mark) => {
  const box = mark.getBoundingClientRect(), style = getComputedStyle(mark);
  return Math.max(box.width, box.height) > 3 && (style.fill !== 'none' || style.stroke !== 'none') && style.opacity > 0.2;
})"""


def test_every_view_opens_without_complaint_and_every_figure_has_marks(visit: Visit):
    visit.open("")
    views = visit.views()
    assert set(views) == {
        "made_up/overview", "made_up/machine/bearing", MACHINE, "made_up/representation", "made_up/training", "made_up/systems",
        "provenance",
    }  # fmt: skip
    drawn = 0
    for view in views:
        page = visit.open(view)
        assert page.locator("section.view:not([hidden])").get_attribute("data-view") == view
        show_all_figures(page)
        for figure in page.locator("section.view:not([hidden]) figure.plot:has(.plot-area)").all():
            assert figure.evaluate(VISIBLE_MARK, MARKS), f"{view}: {figure.inner_text()[:80]}"
            drawn += 1
    assert drawn >= 15
    assert visit.complaints == []


def test_no_serious_accessibility_violation_in_light_dark_and_on_a_phone(browser: Browser, results: Path):
    looks: list[dict[str, Any]] = [
        {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
        {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
    ]
    found = []
    for look in looks:
        visit = Visit(browser, results / "report" / "index.html", **look)
        for view in ("made_up/overview", MACHINE, "made_up/representation", "provenance"):
            page = visit.open(view)
            show_all_figures(page)
            for violation in Axe().run(page).response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    found.append(
                        (
                            view,
                            look["color_scheme"],
                            violation["id"],
                            [n["html"][:120] for n in violation["nodes"][:3]],
                        )
                    )
        visit.context.close()
    assert found == []


def test_numbers_in_the_page_equal_the_results_files(visit: Visit, results: Path):
    official = pd.read_csv(results / "made_up" / "official_scores.csv").set_index("system")
    page = visit.open("made_up/overview")
    rows = page.locator(".main tbody tr").all()
    assert [r.locator("th").inner_text() for r in rows] == list(
        official.sort_values("mean", ascending=False).index
    )
    for row in rows:
        expected = official.loc[row.locator("th").inner_text()]
        shown = [float(c.get_attribute("data-value")) for c in row.locator("td").all()[:3]]  # type: ignore[arg-type]
        assert shown == [expected["mean"], expected["std"], expected["n"]]
        assert row.locator("td").first.inner_text() == f"{expected['mean']:.2f}"

    metrics = pd.read_csv(results / "made_up" / "metrics.csv", dtype={"section": str})
    counted = metrics[metrics["metric"].isin(["auc_source", "auc_target", "pauc"])]
    means = counted.groupby(["machine", "system", "seed"])["value"].agg(hmean).groupby(level=[0, 1]).mean()
    systems = [h.inner_text() for h in page.locator(".heat thead th").all()[1:]]
    for row in page.locator(".heat tbody tr").all():
        cells = [float(c.get_attribute("data-value")) for c in row.locator("td").all()]  # type: ignore[arg-type]
        machine = row.locator("th").inner_text()
        assert cells == pytest.approx([100 * means[machine, system] for system in systems], abs=1e-9)
    scores = pd.read_parquet(results / "made_up" / "attribute_aware" / "seed_0" / "scores.parquet")
    normal = scores.merge(pd.read_parquet(results / "made_up" / "clips.parquet"), on="clip_id")
    normal = normal[normal["condition"] == "normal"]
    alarms = normal.groupby(["machine", "domain"])["decision"].mean()
    rows = page.locator("section:has(> h2:text('False alarms')) tbody tr").all()
    assert [row.locator("th").inner_text() for row in rows] == ["bearing", "fan", "all machines"]
    for row in rows[:2]:
        machine, fields = row.locator("th").inner_text(), row.locator("td").all()
        rates = [float(fields[i].get_attribute("data-value") or "") for i in (2, 4)]
        assert rates == [alarms[machine, domain] for domain in ("source", "target")]
    page = visit.open(MACHINE)
    for row in page.locator("section.view:not([hidden]) table").first.locator("tbody tr").all():
        mine = metrics[(metrics["machine"] == "fan") & (metrics["system"] == row.locator("th").inner_text())]
        means = mine.groupby("metric")["value"].mean()
        cells = [float(c.get_attribute("data-value")) for c in row.locator("td").all()[1::2]]  # type: ignore[arg-type]
        assert cells == pytest.approx([means["auc_source"], means["auc_target"], means["pauc"]], abs=1e-12)


def test_selects_tables_themes_and_addresses_work(visit: Visit):
    page = visit.open(MACHINE)
    panel = page.locator("section.view:not([hidden]) .panel")
    show_all_figures(page)
    before = panel.locator("figure .plot-area").first.get_attribute("aria-label")
    panel.locator("select").nth(0).select_option("1")
    panel.locator("select").nth(1).select_option("1")
    after = panel.locator("figure .plot-area").first.get_attribute("aria-label")
    assert before != after and after is not None and "seed 1" in after

    page = visit.open("made_up/representation")
    maps = page.locator("section.view:not([hidden]) .panel").first
    show_all_figures(page)
    assert [o.inner_text() for o in maps.locator("select").first.locator("option").all()] == list(
        TINY.systems
    )
    before = maps.locator(".plot-area").last.get_attribute("aria-label")
    maps.locator("select").first.select_option("2")
    assert maps.locator(".plot-area").count() == 3  # those of the encoder they share are there too
    after = maps.locator(".plot-area").last.get_attribute("aria-label")
    assert before != after and after is not None and "as scored, logmel_knn" in after
    maps.locator(".scatterlayer .points path").first.hover(force=True)
    assert "section_00" in str(maps.locator(".hoverlayer").first.text_content())
    page = visit.open(MACHINE)

    figure = page.locator("section.view:not([hidden]) figure").first
    figure.get_by_text("As a table").click()
    expect(figure.locator("table tbody tr")).to_have_count(9)  # three systems, three sets of clips

    colour = "getComputedStyle(document.body).backgroundColor"
    page.locator("#theme").click()
    light = page.evaluate(colour)
    page.locator("#theme").click()
    assert (
        page.evaluate("document.documentElement.dataset.theme") == "dark" and page.evaluate(colour) != light
    )

    page.locator("nav a", has_text="Provenance").click()
    expect(page.locator("h1:visible")).to_have_text("Provenance")
    assert page.url.endswith("#provenance")
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.go_back()
    expect(page.locator("h1:visible")).to_have_text("fan")
    assert visit.complaints == []


def test_sound_plays_and_its_picture_is_there(visit: Visit):
    page = visit.open(MACHINE)
    player = page.locator("section.view:not([hidden]) audio").first
    player.scroll_into_view_if_needed()
    player.evaluate(
        "async a => { a.muted = true; await a.play(); await new Promise(r => a.addEventListener('ended', r)); }"
    )
    assert player.evaluate("a => a.duration") == pytest.approx(0.5, abs=0.15)
    assert player.evaluate("a => a.error") is None
    pictures = page.locator("section.view:not([hidden]) .spectrum img")
    assert pictures.count() == page.locator("section.view:not([hidden]) audio").count() > 4
    assert pictures.first.evaluate("i => i.decode().then(() => i.naturalHeight)") == 128


def test_tables_and_figures_are_saved_for_papers(visit: Visit, results: Path):
    page = visit.open("made_up/overview")
    show_all_figures(page)
    saved = {}
    for kind in ("csv", "LaTeX", "Markdown"):
        with page.expect_download() as download:
            page.locator(f".main button[data-save={kind}]").click()
        saved[kind] = Path(download.value.path()).read_text(encoding="utf-8")
    official = pd.read_csv(results / "made_up" / "official_scores.csv").set_index("system")
    table = list(csv.DictReader(io.StringIO(saved["csv"])))
    assert {r["System"]: float(r["Official score"]) for r in table} == official["mean"].to_dict()
    assert r"\toprule" in saved["LaTeX"] and r"attribute\_aware" in saved["LaTeX"] and " & " in saved["LaTeX"]
    assert saved["Markdown"].startswith("| System | Official score |")
    with page.expect_download() as download:
        page.locator("figure button", has_text="SVG").first.click()
    picture = Path(download.value.path()).read_text(encoding="utf-8")
    assert picture.startswith("<svg") and "attribute_aware" in picture


def test_odd_names_are_shown_letter_by_letter(browser: Browser, tmp_path: Path):
    size = Size(
        systems=('"a" <i>&amp;', "logmel_knn"), machines=ODD_NAMES, seeds=(0,), test=4, train=8, seconds=0.1
    )
    build_report(made_up_inputs(tmp_path, size, replicates=20), tmp_path / "index.html")
    visit = Visit(browser, tmp_path / "index.html")
    visit.page.add_init_script(
        "window.alert = () => { document.title = 'attacked'; console.error('attacked'); }"
    )
    page = visit.open("")
    machines = [a.inner_text() for a in page.locator(".heat tbody a").all()]
    assert sorted(machines) == sorted(ODD_NAMES)
    for machine in ODD_NAMES:
        page.locator("nav a", has_text=machine).click()
        expect(page.locator("h1:visible")).to_have_text(machine)
        show_all_figures(page)
        legends = (
            page.locator("section.view:not([hidden]) figure").first.locator(".legendtext").all_text_contents()
        )
        assert '"a" <i>&amp;' in [name.replace("\u00a0", " ") for name in legends]
    assert page.locator("main b, main i").count() == 0
    assert visit.complaints == []
    visit.context.close()


def test_no_view_is_wider_than_a_phone(browser: Browser, results: Path):
    visit = Visit(browser, results / "report" / "index.html", viewport={"width": 390, "height": 844})
    for view in ("made_up/overview", MACHINE, "made_up/representation", "made_up/systems", "provenance"):
        page = visit.open(view)
        show_all_figures(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
    page.locator("#menu").click()
    assert page.locator("nav a", has_text="Overview").is_visible()
    visit.context.close()


def test_printing_shows_figures_on_white_whatever_the_theme(browser: Browser, results: Path, tmp_path: Path):
    visit = Visit(browser, results / "report" / "index.html", color_scheme="dark")
    page = visit.open(MACHINE)
    printed = page.pdf(path=str(tmp_path / "machine.pdf"), print_background=True)
    assert printed.startswith(b"%PDF") and len(printed) > 30_000
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".side").is_visible()
    visit.context.close()


def test_missing_parts_leave_views_that_say_so(browser: Browser, results: Path, tmp_path: Path):
    shutil.copytree(results, tmp_path / "run")
    root = tmp_path / "run" / "made_up"
    inputs = made_up_inputs(
        tmp_path / "run", Size(machines=("fan",), seeds=(0,), test=4, train=8, seconds=0.1)
    )
    for pattern in ("**/labels.parquet", "**/clusters.npz", "**/history.parquet", "embeddings/*", "*/seed_0/embeddings.h5",
                    "metrics.csv", "official_scores.csv", "features/*/*"):  # fmt: skip
        for file in root.glob(pattern):
            file.unlink()
    (tmp_path / "run" / "report" / "provenance.json").unlink()
    (tmp_path / "run" / "encoders" / "eat_small" / "history.parquet").unlink()
    build_report(inputs, tmp_path / "index.html")
    visit = Visit(browser, tmp_path / "index.html")
    visit.open("")
    for view in visit.views():
        page = visit.open(view)
        show_all_figures(page)
        assert page.locator("section.view:not([hidden]) .absent").count() > 0, view
    assert visit.complaints == []
    visit.context.close()
