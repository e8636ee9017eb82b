"""Commands that query an index: search, find, label. torch is imported inside them."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from stepclr.cli.arguments import OptionalSources, Read, check_apart, image_format, open_source, write_image
from stepclr.cli.printing import Counter, say, say_unread
from stepclr.config import CONFIG_FILE
from stepclr.data.reading import AS_DECLARED, Reading
from stepclr.errors import StepclrError, check_suffix, check_used, check_whole, choose, one_line

if TYPE_CHECKING:
    from stepclr.model.encoder import Encoder
    from stepclr.tools.search.table import IndexUpdate


def search(
    index: Positional[Annotated[Path, arg(metavar="INDEX|RUN")]],
    query: Positional[Annotated[tuple[Path, ...], arg(metavar="IMAGE", help_behavior_hint="(one or more)")]],
    k: Annotated[int, arg(aliases=["-k"], metavar="N")] = 12,
    out: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: hits-IMAGE.png)")] = None,
    run: Annotated[
        Path | None, arg(metavar="RUN|FILE|timm:NAME", help_behavior_hint="(default: the one stored with it)")
    ] = None,
) -> None:
    """Find the images of an index most similar to a query (cosine similarity of h), and write a contact sheet.

    Args:
        index: What stepclr embed wrote. For a run, its own index RUN/index is built or updated first.
        query: Image files.
        k: Images to find for each.
        out: Sheet to write: each query, followed by the images found.
        run: What made the index: a run, an encoder.safetensors or timm:NAME.
    """
    from rich.table import Table
    from rich.text import Text

    from stepclr.io import check_writable
    from stepclr.tools.search.queries import Search, check_query, read_query, sheet_of

    if not query:
        raise StepclrError("search takes an index and images: stepclr search index/ query.jpg")
    out = out or Path(f"hits-{query[0].stem[:50]}.png")
    # Before a run's index is updated, which may take long.
    format = image_format(out)
    check_whole("k", k, 1)
    check_writable(out)
    for path in query:
        check_query(path)
    check_apart(out, query)
    index, encoder = _index_of(index)
    opened = Search(index, run or encoder)
    images = [read_query(path, opened.encoder) for path in query]  # all of them, before anything is printed
    say(f"{index}: {opened.describe()}")
    hits = []
    for path, image in zip(query, images, strict=True):
        hits.append(opened.nearest(opened.represent(image), k))
        table = Table("", "similarity", title=Text(one_line(str(path))), title_justify="left")
        table.add_column("label", overflow="fold", max_width=24)
        table.add_column("path", overflow="fold")  # a truncated path is useless
        for rank, hit in enumerate(hits[-1], 1):
            texts = [Text(one_line(text)) for text in (hit.label or "-", hit.path)]
            table.add_row(str(rank), f"{hit.similarity:.3f}", *texts)
        say(table)
    if not opened.thumbnails:
        say(f"no contact sheet: {index} has no thumbnails; a folder or a .parquet has them")
        return
    sheet = sheet_of([path.name for path in query], images, hits)
    write_image(out, sheet, format)
    say(f"{out}: the sheet")


def find(
    what: Positional[Annotated[str, arg(metavar="{duplicates,outliers,mislabeled,next}")]],
    index: Positional[Annotated[Path, arg(metavar="INDEX|RUN|FILE|timm:NAME")]],
    source: Positional[Annotated[OptionalSources, arg(help_behavior_hint="(default: those of the index)")]] = None,
    n: Annotated[int, arg(aliases=["-n"], metavar="N")] = 50,
    labels: Annotated[tuple[Path, ...], arg(metavar="FILE.csv", help_behavior_hint="(default: the index's own)")] = (),
    seed: int = 0,
    out: Annotated[Path | None, arg(metavar="FOLDER|FILE.csv", help_behavior_hint="(default: WHAT.csv)")] = None,
    reading: Read = AS_DECLARED,
) -> None:
    """Find near-duplicates, outliers, wrong labels, or what to label next; write a CSV and a contact sheet.

    Args:
        what: duplicates; outliers; mislabeled: labels that differ from what the other labels predict; or next:
            unlabeled images that best represent the ones not yet covered by a label.
        index: What stepclr embed wrote: a folder, a .parquet or an .npz. For a run, its own index RUN/index is built or
            updated first; for another encoder (an encoder.safetensors, or timm:NAME), find-index next to --out.
        source: The images of an encoder, or those of a run where it has not seen them.
        n: Number of groups or images to report.
        labels: Extra labels for `next` and `mislabeled`: the CSV that either wrote, with its `label` column filled in
            or corrected. Repeatable.
        seed: Seed for subsampling a large index (`next`) and for the folds (`mislabeled`).
        out: CSV to write, or a folder to put it in; the contact sheet is the .png alongside it.
    """
    choose("thing to find", what, ("duplicates", "outliers", "mislabeled", "next"))
    _check_reading(reading, source)
    for option, given in (("labels", bool(labels)), ("seed", seed != 0)):
        check_used(f"--{option}", given, what in ("mislabeled", "next"), "find next and find mislabeled")
    path = _csv_path(what, out)
    for file in labels:
        if file.exists() and path.exists() and file.samefile(path):
            raise StepclrError(f"{path} contains the labels and would be overwritten: choose another --out")
    from stepclr.io import check_same_table, check_writable
    from stepclr.tools.curate.duplicates import find_duplicates
    from stepclr.tools.curate.mislabeled import find_mislabeled
    from stepclr.tools.curate.outliers import find_outliers
    from stepclr.tools.curate.suggest import suggest_labels, with_labels
    from stepclr.tools.curate.table import check_kept
    from stepclr.tools.label.writing import index_for
    from stepclr.tools.search.index import open_index

    check_writable(path)
    images = open_source(source, reading=reading, labels_elsewhere=True) if source else None
    index, updated = index_for(index, images, path.with_name("find-index"), Counter("images"))
    if updated:
        _say_updated(index, updated)
    elif images:
        raise StepclrError(f"{index} is an index and has its images: leave out {images.source}")
    opened = open_index(index)
    if what in ("mislabeled", "next"):
        opened = with_labels(opened, labels)
    if what == "duplicates":
        table = find_duplicates(opened).table(n)
    elif what == "outliers":
        table = find_outliers(opened, n).table()
    elif what == "mislabeled":
        table = find_mislabeled(opened, n, seed=seed).table()
    else:
        table = suggest_labels(opened, n, seed=seed).table()
    if what in ("mislabeled", "next"):
        check_kept(path, table.header, opened)
    else:
        check_same_table(path, table.header)
    earlier = path.exists() or path.stem == what
    table.write(path)
    say(table.summary)
    say(f"{path}: the table")
    sheet = path.with_suffix(".png")
    if earlier and not (table.sheet and opened.thumbnails):
        sheet.unlink(missing_ok=True)  # that of the earlier table
    if not table.sheet:
        return
    if not opened.thumbnails:
        say(f"no contact sheet: {index} has no thumbnails; a folder or a .parquet has them")
        return
    table.write_sheet(opened, sheet)
    say(f"{sheet}: the contact sheet")


def _say_updated(index: Path, updated: "IndexUpdate") -> None:
    removed = f", {updated.removed:,} removed" if updated.removed else ""
    say(f"{index}: {updated.rows:,} images, {updated.added:,} of them new{removed}")


def _index_of(given: Path) -> tuple[Path, "Encoder | None"]:
    """The index RUN/index of a run, built or updated, with its encoder; anything else is an index already."""
    if not (given / CONFIG_FILE).is_file():
        return given, None
    from stepclr.tools.search.table import update_run_index

    updated, encoder = update_run_index(given, Counter("images"))
    index = given / "index"
    _say_updated(index, updated)
    return index, encoder


def label(
    index: Positional[Annotated[Path, arg(metavar="INDEX|RUN|FILE|timm:NAME")]],
    source: Positional[Annotated[OptionalSources, arg(help_behavior_hint="(default: those of the index)")]] = None,
    classes: Annotated[
        str | None, arg(metavar="NAME,NAME,...", help_behavior_hint="(default: the classes of the labels so far)")
    ] = None,
    n: Annotated[int, arg(aliases=["-n"], metavar="N")] = 60,
    labels: Annotated[tuple[Path, ...], arg(metavar="FILE.csv", help_behavior_hint="(default: the index's own)")] = (),
    seed: int = 0,
    out: Annotated[Path, arg(metavar="FILE.html")] = Path("label.html"),
    reading: Read = AS_DECLARED,
) -> None:
    """Choose the best images to label next, and write a page to label them on in a browser, without a server.

    The page saves labels.csv, which contains the labels known before too. The command prints what to run with it.

    Args:
        index: What stepclr embed wrote. For a run, its own index RUN/index is built or updated first; for another
            encoder (an encoder.safetensors, or timm:NAME), an index next to --out.
        source: The images: a folder, a zip file, shards, NAME:SPLIT, or several of these.
        classes: Names of the classes to choose from; more can be added on the page.
        n: Number of images to label.
        labels: Labels so far: the labels.csv of an earlier page, or another table with a path and a label. Repeatable.
        seed: Seed for subsampling a large index.
        out: Page to write.
    """
    check_suffix(out, [".html"])
    _check_reading(reading, source)
    from stepclr.io import check_writable
    from stepclr.tools.label.writing import index_for, write_label_page

    check_writable(out)
    images = open_source(source, reading=reading, labels_elsewhere=True) if source else None
    index, updated = index_for(index, images, out.with_name(f"{out.stem}-index"), Counter("images"))
    if updated:
        _say_updated(index, updated)
    page = write_label_page(index, images, classes, n, labels, out, seed)
    say_unread(images)
    for note in page.notes:
        say(f"note: {note}")
    say(
        f"{page.path}: {page.images:,} images to label, of {page.total:,}; {page.known:,} have a label already. Open "
        "it in a browser, save labels.csv, and move it here. Then:"
    )
    for what, command in page.commands:
        say(f"\n{what}:\n    {command}")


def _check_reading(reading: Reading, source: str | list[str] | None) -> None:
    for option, value in asdict(reading).items():
        check_used(option, value is not None, bool(source), "the images of a source: name it after the index")


def _csv_path(what: str, out: Path | None) -> Path:
    if out is None:
        return Path(f"{what}.csv")
    if out.is_dir() or not out.suffix:
        return out / f"{what}.csv"
    check_suffix(out, [".csv"], ", or be a folder")
    return out
