"""The command that asks an index for the images most like others. torch is imported inside it."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from stepclr.cli.arguments import Counter, image_format, say
from stepclr.errors import StepclrError, one_line


def search(
    index: Positional[Annotated[Path, arg(metavar="INDEX|RUN")]],
    query: Positional[Annotated[tuple[Path, ...], arg(metavar="IMAGE")]],
    k: Annotated[int, arg(aliases=["-k"], metavar="N")] = 12,
    out: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: hits-IMAGE.png)")] = None,
    run: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(default: the one stored with it)")] = None,
) -> None:
    """Find the images of an index most like others, by the cosine similarity of h; writes a contact sheet.

    Args:
        index: What stepclr embed wrote: a folder, a .parquet or an .npz. A run stands for RUN/index, an index of its
            own images, which is made or brought up to date first.
        query: Image files, one or more.
        k: Images to find of each.
        out: Sheet to write: each query first, then what was found.
        run: The run that made the index, or its encoder.safetensors.
    """
    from rich.table import Table
    from rich.text import Text

    from stepclr.io import write_whole
    from stepclr.tools.images import contact_sheet, jpeg_thumbnail, stacked
    from stepclr.tools.search.queries import Search, read_query

    if not query:
        raise StepclrError("search takes an index and images: stepclr search index/ query.jpg")
    out = out or Path(f"hits-{query[0].stem[:50]}.png")
    kind = image_format(out)
    if (index / "config.json").is_file():
        index = _index_of(index)
    opened = Search(index, run)
    images = [read_query(path, opened.encoder) for path in query]  # all of them, before anything is printed
    how = "every one compared"
    if opened.approximate:
        known = "not measured: let stepclr embed finish" if opened.recall is None else f"{opened.recall:.3f}"
        how = f"approximate; recall at 10 against comparing every one: {known}"
    say(f"{index}: {opened.rows:,} images, {how}")
    sheets = []
    for path, image in zip(query, images, strict=True):
        hits = opened.nearest(opened.represent(image), k)
        table = Table("", "similarity", title=Text(one_line(str(path))), title_justify="left")
        table.add_column("label", overflow="fold", max_width=24)
        table.add_column("path", overflow="fold")  # a path that is cut names nothing
        for rank, hit in enumerate(hits, 1):
            table.add_row(
                str(rank), f"{hit.similarity:.3f}", *(Text(one_line(t)) for t in (hit.label or "-", hit.path))
            )
        say(table)
        captions = [
            f"{rank}  {hit.similarity:.3f}\n{one_line(Path(hit.path).name)}" for rank, hit in enumerate(hits, 1)
        ]
        shown = [jpeg_thumbnail(image), *(hit.thumbnail for hit in hits)]
        sheets.append(contact_sheet(shown, [f"query\n{one_line(path.name)}", *captions]))
    if not opened.thumbnails:
        say(f"no contact sheet: {index} has no thumbnails; a folder or a .parquet has them")
        return
    write_whole(out, lambda file: stacked(sheets).save(file, kind))
    say(f"{out}: the sheet")


def _index_of(run: Path) -> Path:
    """RUN/index, an index of the images that the run was trained on, as they are now."""
    from stepclr.pretraining.run import Run
    from stepclr.tools.search.table import build_index

    built = build_index(run, Run(run).images(), run / "index", progress=Counter())
    say(f"{run / 'index'}: {built.rows:,} images, {built.added:,} of them new")
    return run / "index"
