"""Make the screenshots of the site: `python docs/screens.py [REPORT [FOLDER]]`, after `make demo`.

REPORT is the page of an evaluated run (runs/demo/report.html); label.png is a page that its encoder makes. Chromium has
to be installed.
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import stepclr
from stepclr.tools.search.table import build_index

Scheme = Literal["light", "dark"]
# name -> (the heading it begins at, width and height of the window in pixels, color scheme)
SCREENS: dict[str, tuple[str, int, int, Scheme]] = {
    "desktop-top": ("", 1100, 1400, "light"),
    "loss": ("loss", 1100, 1150, "light"),
    "health": ("training", 1100, 1150, "light"),
    "evaluation": ("evaluation", 1100, 1500, "light"),
    "phone": ("", 390, 1600, "dark"),
}
CLASSES = ["top", "trousers", "dress", "coat", "shoe", "bag", "other"]
ANSWERS = "5126"  # keys pressed on the page that `stepclr label` writes, before its screen is taken
COLORS = 256  # of the stored PNG

# A chart is drawn when it comes into sight, and moves what is below it.
DRAWN = "plot => { plot.scrollIntoView({behavior: 'instant'}); return plot.classList.contains('js-plotly-plot') }"


def main(report: Path, folder: Path) -> None:
    """Write every screen into `folder`."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (heading, width, height, scheme) in SCREENS.items():
            page = opened(browser, report, width, height, scheme)
            scroll_to(page, heading)
            screenshot(page, folder / f"{name}.png")
        with TemporaryDirectory() as place:
            page = opened(browser, label_page(report.parent, Path(place)), 1100, 690, "light")
            for key in ANSWERS:
                page.keyboard.press(key)
            screenshot(page, folder / "label.png")
        browser.close()


def label_page(run: Path, folder: Path) -> Path:
    """The page on which images of the sample would be labeled."""
    build_index(run, stepclr.open_images("sample:unlabeled", limit=1000), folder / "index")
    return stepclr.write_label_page(folder / "index", classes=CLASSES, out=folder / "label.html").path


def screenshot(page: Page, path: Path) -> None:
    """A small PNG of what the window shows."""
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)


def opened(browser: Browser, report: Path, width: int, height: int, scheme: Scheme) -> Page:
    """The page in a window, with all its charts drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    for plot in page.query_selector_all(".plot"):
        page.wait_for_function(DRAWN, arg=plot)
    return page


def scroll_to(page: Page, heading: str) -> None:
    """Put the heading with this id at the top of the window, or the top of the page."""
    if heading:
        page.evaluate("id => document.getElementById(id).scrollIntoView({behavior: 'instant'})", heading)
    else:
        page.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
    page.wait_for_timeout(300)  # ms, until a chart at the edge has been drawn


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    defaults = [Path("runs/demo/report.html"), Path(__file__).parent / "screens"]
    main(*given, *defaults[len(given) :])
