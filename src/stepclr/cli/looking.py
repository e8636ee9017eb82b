"""Commands to look at the steps, a data set or a run: demo, steps, views, doctor, report.

torch is imported inside them, so that --help is instant.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from stepclr.cli.arguments import (
    ALL,
    Images,
    LabelFiles,
    Limit,
    Names,
    OptionalSources,
    Read,
    Switch,
    base_settings,
    check_apart,
    given_settings,
    image_format,
    open_source,
    write_image,
)
from stepclr.cli.printing import Counter, note, page_of, say, say_unread
from stepclr.config import PretrainConfig, Strength
from stepclr.data.reading import AS_DECLARED, RGB
from stepclr.errors import StepclrError, check_suffix, check_used, check_whole
from stepclr.recipes import RECIPES, recipe_config

PAIRS, VIEWS = 4, 2  # groups of views of an image, on a sheet; and views in a group


def demo(
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/demo"),
    epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None,
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint=ALL)] = None,
    scratch_steps: int = 1000,
) -> None:
    """Run all eight steps on the bundled images (a few minutes) and print how much pretraining helped.

    Args:
        out: The run's folder; if it exists, the first free one of RUN-2, RUN-3, ...
        epochs: Passes over the images.
        limit: Use at most this many unlabeled images.
        scratch_steps: Steps of 32 images to train the baseline `scratch`.
    """
    from dataclasses import replace

    import stepclr
    from stepclr.pretraining.run import free_folder
    from stepclr.tools.scores import loading_snippet, score_summary
    from stepclr.tools.walk import Walk

    config = recipe_config("sample")
    config = replace(config, epochs=config.epochs if epochs is None else epochs)
    out = free_folder(out)
    walk = Walk(open_source("sample:unlabeled", None, 64), config)
    for step in range(1, 6):
        say("\n".join(walk.lines(step)))
    say(f"step 6  pretraining on all of sample:unlabeled, into {out}")
    run = stepclr.pretrain("sample:unlabeled", out, config=config, limit=limit, monitor="sample:train")
    say("step 7  evaluation: 10 labels per class of sample:train (5 draws), and all; scratch uses these labels alone")
    counter = Counter()
    scores = stepclr.evaluate(
        run,
        "sample:train",
        "sample:test",
        labels_per_class=(10, "all"),
        baselines=("pixels", "random", "scratch"),
        scratch_steps=scratch_steps,
        progress=counter,
        announce=counter.announce,
        left=counter.left,
    )
    for part in score_summary(scores):
        say(part)
    page_of(out)
    say(f"step 8  use: the run, its scores and its encoder are in {out}\n\n{loading_snippet(run)}")


def steps(
    source: Images,
    only: Annotated[int | None, arg(metavar="1..8", help_behavior_hint="(default: all eight)")] = None,
    encoder: str = "resnet18",
    classes: Names = None,
    seed: int = 0,
    reading: Read = AS_DECLARED,
) -> None:
    """Show steps 1 to 8 on 64 images: the input and output of each, and where to read about it.

    Args:
        only: Show this step only; the steps before it run silently.
        encoder: Network: resnet10 to resnet200, or any timm name.
        seed: Seed of the initialization and the views.
    """
    from stepclr.tools.walk import STEPS, Walk

    if only is not None and only not in STEPS:
        raise StepclrError(f"--only {only}: the steps are 1 to 8")
    walk = Walk(open_source(source, classes, 64, reading=reading), PretrainConfig(encoder=encoder, seed=seed))
    for step in [only] if only else STEPS:
        say("\n".join(walk.lines(step)))


def views(
    source: Images,
    out: Annotated[Path, arg(metavar="FILE.png")],
    policy: str = "simclr",
    size: Annotated[int | None, arg(metavar="PX", help_behavior_hint="(default: as in pretrain)")] = None,
    strength: Strength = None,
    blur: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: by size)")] = None,
    warp: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: 0.5)")] = None,
    min_area: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="(default: by size)")] = None,
    views: int = VIEWS,
    rows: int = 8,
    pairs: int = PAIRS,
    seed: int = 0,
    classes: Names = None,
    reading: Read = AS_DECLARED,
) -> None:
    """Save a sheet of augmented views.

    It has one row per image: the original, then pairs of views. With --policy all, it has one column per policy.

    Args:
        out: Image file to write.
        policy: Augmentation policy: simclr, simaugment, autoaugment[:TABLE], randaugment[:LAYERS,MAGNITUDE], stacked,
            crop, domain:{aerial,microscopy,xray,document}; or policies and ops joined by +, such as
            simclr+VerticalFlip or "ColorJitter(strength=0.5)+Blur(p=0.3)"; "all" shows one view for each policy.
        size: Side of a view, in pixels.
        strength: Strength s of the color jitter; one value, or one for each view separated by commas.
        blur: Probability of the Gaussian blur.
        warp: Probability of the sparse image warp.
        min_area: Smallest crop, as a share of the image's area.
        views: Views per group (2 for pairs).
        rows: Number of images to show, spread evenly over the source.
        pairs: Number of pairs of views per image.
        seed: Seed of the views.
    """
    from stepclr.data.decode import source_side
    from stepclr.io import check_writable
    from stepclr.pretraining.resolve import view_size
    from stepclr.tools.sheet import policy_sheet, sheet
    from stepclr.views.ops import FOR_RGB
    from stepclr.views.policies import POLICIES, read_policy
    from stepclr.views.views import Views

    check_writable(out)
    check_whole("rows", rows, 1)
    check_whole("pairs", pairs, 1)
    for name, given in (("pairs", pairs != PAIRS), ("views", views != VIEWS)):
        check_used(name, given, policy != "all", "one policy; with policy=all, each image has one view of each")
    check_apart(out, source)
    images = open_source(source, classes, reading=reading)
    rows = min(rows, len(images))
    some = images.take([k * len(images) // rows for k in range(rows)])
    side = view_size(images) if size is None else size
    settings: dict[str, Any] = {"strength": strength, "blur": blur, "warp": warp}
    shown = []
    for name in POLICIES if policy == "all" else [policy]:
        used = settings
        if policy == "all":  # each policy that these images can have, with those settings that it has an op for
            default = read_policy(name)
            if images.channels != RGB and any(isinstance(op, FOR_RGB) for op in default.ops):
                continue
            used = {setting: value for setting, value in settings.items() if setting in default.defaults()}
        shown.append(Views(name, side, min_area=min_area, views=views, channels=images.channels, **used))
    kind = image_format(out)
    some = some.decoded(source_side(side))  # images that cannot be read are left out
    pixels, _ = some.read_readable(range(len(some)))
    say_unread(images)
    if policy == "all":
        image, what = policy_sheet(pixels, shown, seed), "one view"
    else:
        image, what = sheet(pixels, shown[0], seed, pairs), f"{pairs} times {views} views"
    write_image(out, image, kind)
    say(f"{out}: {len(pixels)} images, {what} of each:")
    for policy_views in shown:
        say(f"  {policy_views.describe()}")


def doctor(
    source: Images,
    config: Annotated[PretrainConfig, arg(name="training")],
    test: Annotated[OptionalSources, arg(help_behavior_hint="(default: none)")] = None,
    recipe: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: none)")] = None,
    labels: LabelFiles = (),
    classes: Names = None,
    limit: Limit = None,
    out: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: none)")] = None,
    json: Switch = False,
) -> None:
    """Check a data set before training: problems, estimated time and memory, and a suggested recipe.

    Args:
        config: Settings of the planned run (same options as pretrain).
        test: Test images; reports any that also occur in the training set. Without it, those that the column split of
            --labels says are for test.
        recipe: Named settings, which the other options override; stepclr --help lists them.
        out: File for the whole report, as JSON.
        json: Print that JSON instead of a summary.
    """
    from json import dumps

    import stepclr
    from stepclr.data.sources import open_images, open_train_test
    from stepclr.io import check_writable, write_whole
    from stepclr.pretraining.resolve import changed
    from stepclr.tools.doctor.screen import screen

    if out:
        check_suffix(out, [".json"])
        check_writable(out)
    if recipe:
        print(f"recipe {recipe}: {RECIPES[recipe].line}", file=sys.stderr)
    base = base_settings(recipe)
    config, unused = changed(base, given_settings(config, base))
    for line in unused:
        print(line, file=sys.stderr)
    images, test_images = open_train_test(source, test, labels or None, missing="list", reading=config.reading)
    images = open_images(images, classes or None)
    diagnosis = stepclr.doctor(images, config, test_images, Counter("images"), note, limit)
    text = dumps(diagnosis.to_dict(), indent=2)
    if out:
        write_whole(out, lambda file: file.write(text.encode()))
    if json:
        print(text)
    else:
        say(screen(diagnosis))


def report(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    source: Annotated[OptionalSources, arg(help_behavior_hint="(default: the run's own)")] = None,
) -> None:
    """Write report.html into a run's folder: the eight steps on the run's own images.

    Args:
        run: The run's folder.
        source: Where its images are, if they have moved.
    """
    import stepclr

    say(f"{stepclr.report(run, source)}")
