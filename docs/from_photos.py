"""Walk the page from-photos.md on real images: `python docs/from_photos.py CLASSES FOLDER`.

CLASSES has a folder of images for each class. 2,000 of them, drawn by SEED, are copied into FOLDER/photos without a
class in their names, and FOLDER/labels.csv names 12 of each class. Then the page's commands run there as they stand,
and what they print is printed. A page to label on is answered in Chromium with the true classes; its screen is
photo-label.png. At the end the predictions for photos without a label are compared with the true classes.
"""

import csv
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

PAGE = Path(__file__).with_name("from-photos.md")
IMAGES, LABELS, SEED = 2000, 12, 0


def main(classes: Path, folder: Path) -> None:
    truth = scatter(classes, folder)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for command in re.findall(r"^    (stepclr .*)$", PAGE.read_text(), re.MULTILINE):
            print(f"\n$ {command}", flush=True)
            words = shlex.split(command)
            subprocess.run([sys.executable, "-m", *words], cwd=folder, check=True, stderr=subprocess.STDOUT)
            if words[1] == "label":
                answer(browser, folder / words[words.index("--out") + 1], truth, folder)
        browser.close()
    with (folder / "labels.csv").open(newline="") as file:
        labeled = {row["path"] for row in csv.DictReader(file)}
    with (folder / "named.csv").open(newline="") as file:
        others = [row for row in csv.DictReader(file) if row["path"] not in labeled]
    correct = sum(truth[row["path"]] == row["predicted"] for row in others)
    print(f"\n{correct} of {len(others)} predictions for photos without a label are right")


def scatter(classes: Path, folder: Path) -> dict[str, str]:
    """Copy the images and write labels.csv; the class of each copy, by its name."""
    files = sorted(path for path in classes.glob("*/*") if path.is_file())
    random.Random(SEED).shuffle(files)
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number, path in enumerate(files[:IMAGES]):
        name = f"IMG_{number:05}{path.suffix.lower()}"
        shutil.copy(path, photos / name)
        truth[name] = path.parent.name.partition("_")[2].replace("_", " ") or path.parent.name
    rows = []
    for one in sorted(set(truth.values())):
        rows += [(name, one) for name, label in truth.items() if label == one][:LABELS]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return truth


def answer(browser: Browser, path: Path, truth: dict[str, str], folder: Path) -> None:
    """Label every image of a page by its keys, and save labels.csv where the browser's user would move it."""
    window = browser.new_page(viewport={"width": 1100, "height": 690})
    window.goto(path.as_uri())
    data: Any = window.evaluate("data")
    keys = dict(zip(data["classes"], "123456789abcdefghijklmnopqtvwxyz", strict=False))
    for number, image in enumerate(data["images"]):
        if number == 4:
            window.screenshot(path=folder / "photo-label.png")
        window.keyboard.press(keys[truth[image["path"]]])
    with window.expect_download() as download:
        window.keyboard.press("s")
    download.value.save_as(folder / "labels.csv")
    window.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
