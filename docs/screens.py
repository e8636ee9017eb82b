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
    "verdict": ("", 1440, 900, "light"),
    "verdict-dark": ("", 1440, 900, "dark"),
    "loss": ("loss", 1440, 1000, "light"),
    "training": ("training", 1440, 900, "light"),
    "evaluation": ("evaluation", 1440, 1300, "light"),
    "map": ("use", 1440, 1150, "light"),
    "phone": ("", 390, 844, "dark"),
}
CLASSES = ["top", "trousers", "dress", "coat", "shoe", "bag", "other"]
ANSWERS = "5126"  # keys pressed on the page that `stepclr label` writes, before its screen is taken
COLORS = 256  # of the stored PNG


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
    """The page in a window."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    return page


def scroll_to(page: Page, heading: str) -> None:
    """Put the heading with this id at the top of the window, or the top of the page."""
    if heading:
        page.evaluate("id => document.getElementById(id).scrollIntoView({behavior: 'instant'})", heading)
    else:
        page.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    defaults = [Path("runs/demo/report.html"), Path(__file__).parent / "screens"]
    main(*given, *defaults[len(given) :])
