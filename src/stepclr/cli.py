"""The command line: one function a command. torch is imported inside them, so that help is instant."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from stepclr.config import PretrainConfig, stored_config
from stepclr.errors import StepclrError, choose
from stepclr.recipes import RECIPES, recipe_config

if TYPE_CHECKING:
    from stepclr.data import ImageSet

Source = Annotated[str, arg(metavar="SOURCE")]
Names = Annotated[str | None, arg(metavar="NAME,NAME,...", help_behavior_hint="(default: all)")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")]

SOURCES = """A SOURCE is a folder or zip of pictures (class folders give labels), or NAME:SPLIT:
  sample:{unlabeled,train,test}     bundled: Fashion-MNIST pictures
  stl10:{train,test,unlabeled,train+unlabeled}   cifar10:, cifar100:, fashion-mnist:{train,test}"""


def say(text: object) -> None:
    """Print a result to standard output."""
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def pretrain(
    source: Positional[Source],
    out: Annotated[Path, arg(metavar="RUN")],
    config: PretrainConfig,
    recipe: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: none)")] = None,
    classes: Names = None,
    limit: Count = None,
    resume: bool = False,
) -> None:
    """Pretrain an encoder on pictures without labels.

    Args:
        source: Pictures: a folder, a zip, or NAME:SPLIT as sample:unlabeled, stl10:train, cifar10:train.
        out: The run's folder.
        config: Settings; None leaves them to the pictures.
        recipe: Settings by name, which the other options then change; see stepclr --help.
        classes: Keep the labelled pictures of these classes only.
        limit: Keep that many pictures only.
        resume: Go on with the run in --out from its newest checkpoint.
    """
    import stepclr
    from stepclr.report import loading_snippet

    if recipe:
        print(f"recipe {recipe}: {_first_line(RECIPES[recipe])}", file=sys.stderr)
    run = stepclr.pretrain(source, out, config=config, classes=_names(classes), limit=limit, resume=resume)
    say(f"\nthe run is in {out}; its encoder is loaded by\n\n{loading_snippet(run)}")


def evaluate(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    train: Source,
    test: Source,
    labels_per_class: Annotated[str, arg(metavar="N,N,...,all")] = "all",
    draws: int = 5,
    seed: int = 0,
    probe: str = "linear,knn",
    baselines: str = "pixels,random",
    scratch_steps: int = 1000,
) -> None:
    """Score a run's frozen encoder with few labels, beside baselines; writes evaluation.json into the run.

    Args:
        run: The run's folder.
        train: Labelled pictures to learn from.
        test: Labelled pictures to score on; their labels are read once, at the end.
        labels_per_class: Labels a class to learn from, several with commas; all for every one.
        draws: Random draws of those labels.
        seed: Seed of the draws and of the baselines' initialisations.
        probe: What reads the features: linear, knn.
        baselines: What stands beside: pixels, random, scratch (supervised from scratch: slow); none for none.
        scratch_steps: Steps of 32 pictures that scratch trains for.
    """
    import stepclr
    from stepclr.report.scores import paired_lines, score_table

    scores = stepclr.evaluate(
        run,
        train,
        test,
        labels_per_class=labels_per_class,
        draws=draws,
        seed=seed,
        probe=_names(probe) or [],
        baselines=[] if baselines in ("", "none") else _names(baselines) or [],
        scratch_steps=scratch_steps,
        progress=_Counter(),
    )
    say(score_table(scores))
    for line in paired_lines(scores):
        say(line)
    if run.is_dir():
        say(f"protocol and every value: {run / 'evaluation.json'}")


def embed(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    source: Positional[Source],
    out: Annotated[Path, arg(metavar="FILE.npz")],
    classes: Names = None,
    limit: Count = None,
    precision: str = "fp32",
) -> None:
    """Write the representations of all pictures of a source, with their paths and labels.

    Args:
        run: The run's folder, or an encoder.safetensors.
        source: Pictures: a folder, a zip, or NAME:SPLIT.
        out: File to write; its suffix picks the format.
        classes: Keep the labelled pictures of these classes only.
        limit: Keep that many pictures only.
        precision: Arithmetic of the encoder: fp32, bf16.
    """
    from stepclr.use import write_embeddings

    written, skipped = write_embeddings(run, _open(source, classes, limit), out, precision, _Counter())
    say(f"{out}: {written:,} embeddings" + (f"; {skipped:,} pictures could not be read" if skipped else ""))


def views(
    source: Positional[Source],
    out: Annotated[Path, arg(metavar="FILE.png")],
    policy: str = "simclr",
    size: Annotated[int | None, arg(metavar="PX", help_behavior_hint="(default: as in pretrain)")] = None,
    strength: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: by size)")] = None,
    blur: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: by size)")] = None,
    min_area: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="(default: by size)")] = None,
    rows: int = 8,
    pairs: int = 4,
    seed: int = 0,
    classes: Names = None,
) -> None:
    """Draw a sheet of views: a row a picture, the original and its pairs.

    Args:
        source: Pictures: a folder, a zip, or NAME:SPLIT.
        out: Picture file to write.
        policy: Augmentation policy: simclr, crop.
        size: Side of a view, pixels.
        strength: Strength s of the colour jitter.
        blur: Probability of the Gaussian blur.
        min_area: Smallest crop, share of the picture's area.
        rows: Pictures to show, spread evenly over the source.
        pairs: Pairs of views a picture.
        seed: Seed of the views.
        classes: Keep the labelled pictures of these classes only.
    """
    from PIL import Image

    from stepclr.pretrain.settle import view_size
    from stepclr.views import Views, sheet

    images = _open(source, classes, None)
    some = images.take([k * len(images) // rows for k in range(min(rows, len(images)))])
    how = Views(policy, size or view_size(images), strength, blur, min_area)
    pictures, _ = some.decoded(2 * how.size).read_readable(range(len(some)))
    if out.suffix.lower() not in Image.registered_extensions():
        raise StepclrError(f"--out {out} names no picture format; use a suffix as .png")
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures, how, seed, pairs).save(out)
    say(
        f"{out}: {len(pictures)} pictures, {pairs} pairs of views each: {policy}, {how.size} px, "
        f"strength {how.strength:g}, blur {how.blur:g}, min_area {how.min_area:g}"
    )


def steps(
    source: Positional[Source],
    only: Annotated[int | None, arg(metavar="1..8", help_behavior_hint="(default: all eight)")] = None,
    encoder: str = "resnet18",
    classes: Names = None,
    seed: int = 0,
) -> None:
    """Walk through steps 1 to 8 on 64 pictures, saying what comes in, what goes out, and where to read about it.

    Args:
        source: Pictures: a folder, a zip, or NAME:SPLIT.
        only: Show this step alone; those before it run silently.
        encoder: Network: resnet18 ... resnet200, or any timm name.
        classes: Keep the labelled pictures of these classes only.
        seed: Seed of initialisation and views.
    """
    from stepclr.report import STEPS, Walk

    if only is not None and only not in STEPS:
        raise StepclrError(f"--only {only}: the steps are 1 to 8")
    walk = Walk(_open(source, classes, 64), PretrainConfig(encoder=encoder, seed=seed))
    for step in [only] if only else STEPS:
        say("\n".join(walk.lines(step)))


def demo(
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/demo"),
    epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None,
    limit: Count = None,
    scratch_steps: int = 1000,
) -> None:
    """The whole of it on the bundled pictures, in minutes: eight steps, and a table of what pretraining bought.

    Args:
        out: The run's folder; where it exists, the next free of RUN-2, RUN-3, ...
        epochs: Passes over the pictures.
        limit: Keep that many unlabelled pictures only.
        scratch_steps: Steps of 32 pictures for the baseline that learns from scratch.
    """
    from dataclasses import replace

    import stepclr
    from stepclr.pretrain.folder import free_folder
    from stepclr.report import Walk, loading_snippet, score_table
    from stepclr.report.scores import paired_lines

    config = recipe_config("sample")
    config = replace(config, epochs=epochs or config.epochs)
    out = free_folder(out)
    walk = Walk(_open("sample:unlabeled", None, 64), config)
    for step in range(1, 6):
        say("\n".join(walk.lines(step)))
    say(f"step 6  pretraining, on all of sample:unlabeled, into {out}")
    run = stepclr.pretrain("sample:unlabeled", out, config=config, limit=limit, monitor="sample:train")
    say("step 7  evaluation: 10 labels a class of sample:train, 5 draws; scratch sees the same labels and no others")
    scores = stepclr.evaluate(
        run,
        "sample:train",
        "sample:test",
        labels_per_class=10,
        baselines=("pixels", "random", "scratch"),
        scratch_steps=scratch_steps,
        progress=_Counter(),
    )
    say(score_table(scores))
    for line in paired_lines(scores):
        say(line)
    say(f"step 8  use: the run, its scores and its encoder are in {out}\n\n{loading_snippet(run)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "steps": steps,
    "views": views,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "embed": embed,
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command; exit with 0, 1 (the run failed), 2 (bad input) or 128 + the signal that stopped it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            sys.exit(0 if arguments else 2)
        if arguments[0] == "--version":
            from stepclr import __version__

            print(f"stepclr {__version__}")
            sys.exit(0)
        _run(choose("command", arguments[0], COMMANDS), arguments[1:])
    except StepclrError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt as stop:
        _fail(str(stop) or "interrupted", 128 + getattr(stop, "signal", 2))
    except (RuntimeError, OSError) as error:
        from stepclr.pretrain import Diverged

        if not isinstance(error, Diverged | OSError):
            raise
        _fail(str(error), 1)
    sys.exit(0)


def usage() -> str:
    """`stepclr --help`."""
    lines = [
        "usage: stepclr COMMAND [OPTIONS]    (stepclr COMMAND --help tells the rest)",
        "",
        "SimCLR, step by step.",
        "",
    ]
    lines += [f"  {name:10}{_first_line(command)}" for name, command in COMMANDS.items()]
    lines += ["", SOURCES, "", "Recipes (pretrain --recipe):"]
    lines += [f"  {name:10}{_first_line(recipe)}" for name, recipe in RECIPES.items()]
    return "\n".join(lines)


def _run(name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    if name == "pretrain":  # the options' defaults are the recipe's, or on --resume the run's own
        run = _peek(arguments, "--out") if "--resume" in arguments else None
        base = (stored_config(Path(run)) if run else None) or recipe_config(_peek(arguments, "--recipe"))
        command = partial(command, config=base)
    tyro.cli(command, args=arguments, prog=f"stepclr {name}", config=(FlagCreatePairsOff, OmitArgPrefixes))


def _peek(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option that decides the defaults of the others."""
    for position, word in enumerate(arguments):
        if word == option and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _open(source: str, classes: str | None, limit: int | None) -> "ImageSet":
    from stepclr.data import open_images

    return open_images(source, classes=_names(classes), limit=limit)


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


class _Counter:
    """Counts on standard error: in one place on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.spoke = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif time.monotonic() - self.spoke > 15:
            self.spoke = time.monotonic()
            print(f"{done:,} of {total:,}", file=sys.stderr, flush=True)


def _first_line(command: Callable[..., Any]) -> str:
    return (command.__doc__ or "").split("\n")[0]


def _fail(message: str, code: int) -> NoReturn:
    print(f"stepclr: {message}", file=sys.stderr)
    sys.exit(code)
