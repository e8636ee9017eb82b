"""Are the estimates of `stepclr doctor` accurate? Seconds of an epoch and peak memory, compared with a run.

    python benchmarks/doctor.py [--cifar DIR] [--imagenette DIR] [--epochs 2]

DIR: class folders of images. For each set: the doctor in a separate process, then pretrain in another, then the doctor
again, because other jobs come and go; all with the same settings and an empty cache. A run's seconds are those of
`metrics.jsonl` (training, its first steps included), divided by its epochs; its memory is the largest resident size of
the process. An estimate should be within 25%.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import in_own_process, peak_mebibytes

import stepclr
from stepclr.recipes import recipe_config


def run(source: str, out: str, recipe: str, options: dict[str, Any], limit: int) -> tuple[float, float]:
    """Training seconds per epoch, and peak memory in MiB."""
    made = stepclr.pretrain(source, out, recipe=recipe, limit=limit, progress=False, **options)
    return made.metrics[-1]["seconds"] / options["epochs"], peak_mebibytes()


def compare(source: str, recipe: str, options: dict[str, Any], limit: int) -> None:
    """One line of the table."""
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory() as name:
        os.environ["STEPCLR_CACHE"] = f"{name}/cache"
        report = Path(name) / "doctor.json"
        command = [sys.executable, "-m", "stepclr", "doctor", source, "--recipe", recipe, "--limit", str(limit), *flags]

        def ask() -> dict[str, Any]:
            subprocess.run([*command, "--out", str(report)], check=True, capture_output=True)
            answer: dict[str, Any] = json.loads(report.read_text())
            return answer

        before = ask()
        begun = time.perf_counter()
        seconds, peak = in_own_process(run, source, f"{name}/run", recipe, options, limit)
        wall = time.perf_counter() - begun
        after = ask()
    estimates = [answer["estimate"] for answer in (before, after)]
    memory = estimates[0]["peak_bytes"] / 2**20
    cells = [
        f"{recipe}, {limit:,}",
        " and ".join(f"{sum(answer['seconds'].values()):.0f} s" for answer in (before, after)),
        f"{_ratio([one['epoch_seconds'] for one in estimates], seconds)} s",
        f"{memory:,.0f} / {peak:,.0f} = {memory / peak:.2f} MiB",
        f"{_ratio([one['run_seconds'] for one in estimates], wall)} s",
        f"{os.getloadavg()[0]:.1f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def _ratio(estimates: list[float], true: float) -> str:
    first, second = estimates
    return f"{first:.1f}, {second:.1f} / {true:.1f} = {first / true:.2f}, {second / true:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--imagenette", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    options = {"epochs": given.epochs}
    print("| recipe, images | doctor took | epoch: estimates (before, after) / true | memory | whole run | load |")
    print("|---|---|---|---|---|---|", flush=True)
    compare("sample:unlabeled", "sample", options | {"epochs": recipe_config("sample").epochs}, 10_000)
    if given.cifar:
        compare(str(given.cifar), "cifar10", options, 10_000)
    if given.imagenette:
        compare(str(given.imagenette), "imagenette", options | {"size": 96}, 2_500)


if __name__ == "__main__":
    main()
