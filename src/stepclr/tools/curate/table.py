"""What `stepclr find` writes: a CSV, and a contact sheet of the images in it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepclr.errors import StepclrError, one_line
from stepclr.io import check_same_table, write_csv, write_whole
from stepclr.tools.images import contact_sheet, stacked
from stepclr.tools.search.index import EmbeddingIndex

COLUMNS = 6  # images per row of a contact sheet, which shows at most this many of a group of duplicates


@dataclass(frozen=True)
class Table:
    """Findings in an index, ready to be written.

    Attributes:
        header, rows: of the CSV.
        sheet: the rows of the contact sheet: (index of an image, first line of its caption) each.
        summary: the findings in one sentence.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    sheet: Sequence[Sequence[tuple[int, str]]]
    summary: str

    def write(self, path: Path) -> None:
        """Write the CSV."""
        write_csv(path, [self.header, *self.rows])

    def write_sheet(self, index: EmbeddingIndex, path: Path) -> None:
        """Write the contact sheet, a PNG of the thumbnails of `index`, with an image's name below its caption."""
        sheets = []
        for row in self.sheet:
            captions = [f"{caption}\n{one_line(Path(index.paths[i]).name)}" for i, caption in row]
            sheets.append(contact_sheet([index.thumbnails[i] for i, _ in row], captions, COLUMNS))
        write_whole(path, lambda file: stacked(sheets).save(file, "PNG"))


def check_kept(path: Path, header: Sequence[str], index: EmbeddingIndex) -> None:
    """Raise StepclrError where a file, about to be overwritten, is another table or has labels that a person typed.

    Those are labels that the index does not have. In a table with the column "suggested", each label was the index's
    own: where the index now has the suggested one, it was corrected elsewhere.
    """
    check_same_table(path, header)
    if "label" not in header or not path.is_file():
        return
    label_of = {name: index.class_name(i) for i, name in enumerate(index.paths)}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        label, own = (row["label"] or "").strip(), label_of.get(row["path"])
        corrected = "suggested" in row and (row["path"] not in label_of or own == row["suggested"])
        if label and label != own and not corrected:
            raise StepclrError(
                f"{path} has labels that are not in the index and would be overwritten: give it as --labels and choose "
                "another --out, or delete it"
            )
