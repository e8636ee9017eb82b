"""The page of a run: its size, how long it takes to write, and how long to open in a browser.

    python benchmarks/page.py RUN [--times 5] [--shots FOLDER]

Writes RUN's report.html again and opens it in Chromium that many times, each time in a new window of 1440 x 900 (and of
390 x 844, the size of a phone), until the browser reports that it has loaded. --shots saves an image of each page.
Needs the extra `browser` and Chromium.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import stepclr

WINDOWS = {"desktop": (1440, 900, "light"), "phone": (390, 844, "light"), "dark": (1440, 900, "dark")}
OPENED = "performance.getEntriesByType('navigation')[0].loadEventStart / 1000"


def opened(browser: Browser, page: Path, window: str, shot: Path | None) -> float:
    """Seconds until the page has loaded; `shot`: where to save an image of it."""
    width, height, scheme = WINDOWS[window]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
    )
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    seconds = float(tab.evaluate(OPENED))
    if shot:
        tab.screenshot(path=shot, full_page=True)
    context.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--shots", type=Path)
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("needs Chromium")
    begun = time.perf_counter()
    page = stepclr.report(given.run)
    seconds = time.perf_counter() - begun
    print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB, written in {seconds:.1f} s")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for window in WINDOWS:
            times = [opened(browser, page, window, None) for _ in range(given.times)]
            print(
                f"  {window:8} opens in {statistics.median(times):.2f} s "
                f"(median of {given.times}, {min(times):.2f} to {max(times):.2f})"
            )
            if given.shots:
                given.shots.mkdir(parents=True, exist_ok=True)
                opened(browser, page, window, given.shots / f"{window}.png")
        browser.close()


if __name__ == "__main__":
    main()
