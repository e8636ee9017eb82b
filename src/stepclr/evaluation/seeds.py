"""Runs that differ in their seed alone: the spread of their scores over pretraining seeds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepclr.config import SETTINGS
from stepclr.errors import StepclrError
from stepclr.evaluation.results import MEASURES, Score, Scores, fields_of, summarize
from stepclr.evaluation.splits import LabelsPerClass
from stepclr.pretraining.run import Run

OneOrMore = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # folders
OF_THE_RUN = ("simclr", "sgd", "finetuned", "knn")  # the first that is scored has its confusion matrix reported
OF_THE_IMAGES = ("names_checksum", "labels_checksum")
# Runs that are compared over their seeds share all settings that shape an encoder, and the images.
SAME_OVER_SEEDS = sorted({*SETTINGS, *OF_THE_IMAGES} - {"seed", "keep_every", "monitor", "cache_gib"})


def other_seeds(run: str | os.PathLike[str], seeds: OneOrMore) -> list[Run]:
    """The runs of `seeds` besides `run`; StepclrError unless all have the same settings and another seed each."""
    seeds = [seeds] if isinstance(seeds, str | os.PathLike) else seeds
    runs = list({Path(path).resolve(): Run(Path(path)) for path in [run, *seeds]}.values())
    if len(runs) == 1:
        if seeds:
            raise StepclrError(f"seeds names no run besides {run}; give runs with other seeds")
        return []
    seen: dict[int, Path] = {}
    for each in runs:
        if not each.exists():
            raise StepclrError(f"{each.folder} is not the folder of a run, so its pretraining seed is not known")
        if each.interrupted:
            raise StepclrError(f"{each.folder} has not ended; resume it, so that all runs have as many epochs")
        for name in SAME_OVER_SEEDS:
            first, value = getattr(runs[0].config, name), getattr(each.config, name)
            if value != first:
                raise StepclrError(
                    f"{each.folder} differs from {runs[0].folder} in more than its seed: {name} is {value}, not {first}"
                )
        same = seen.setdefault(each.config.seed, each.folder)
        if same != each.folder:
            raise StepclrError(f"{same} and {each.folder} have the same seed, {each.config.seed}")
    return runs[1:]


def over_seeds(of_runs: Sequence[Scores]) -> list[Score]:
    """The rows of the first run's own methods over the seeds: the mean of each run's means, and their spread."""
    of_method: dict[tuple[str, LabelsPerClass], list[Score]] = {}
    for scores in of_runs:
        for row in scores.rows:
            if row.method in OF_THE_RUN:
                of_method.setdefault((row.method, row.labels_per_class), []).append(row)
    rows = []
    for (name, labels), of_seeds in of_method.items():
        fields: dict[str, Any] = {}
        for clean in (False, True):
            over_runs = {}
            for measure in ("top1", *MEASURES):
                means = [summary.mean for row in of_seeds if (summary := row.summary(measure, clean))]
                if means:  # all runs have the same measures
                    over_runs[measure] = summarize(means)
            fields |= fields_of(over_runs, clean)
        over = f"{name} over {len(of_seeds)} seeds"
        rows.append(Score(over, labels, labels=of_seeds[0].labels, **fields))
    return rows
