"""Labels in tables, as spreadsheets and other programs write them."""

import unicodedata
from pathlib import Path

import pytest

from stepclr.data.label_csv import Section, check_found, read_labels
from stepclr.errors import StepclrError

NAMES = ["cat/a.png", "cat/b.png", "caf\u00e9/c.png", " odd.png", "x,y.png", "twin.png", "./twin.png"]
BOM = "\ufeff"


def labels_in(folder: Path, *texts: str | bytes) -> dict[int, str]:
    files = [folder / f"{i}.csv" for i in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogateescape"))
    labels = read_labels(files, [Section(NAMES)], "the index")
    check_found(labels, "the index")
    return {i: row.label for i, row in labels.rows.items()}


@pytest.mark.parametrize(
    "text",
    [
        "path,label\ncat/a.png,Siamese cat\ncat/b.png,dog\n",
        "path;label\ncat/a.png;Siamese cat\ncat/b.png;dog\n",
        "path\tlabel\r\ncat/a.png\tSiamese cat\r\ncat/b.png\tdog\r\n",
        " Path , Label \n cat/a.png , Siamese cat \n\n cat/b.png ,dog",
        f'{BOM}"File Name";"Class"\n"cat/a.png";"Siamese cat"\n"cat/b.png";"dog"\n;;\n',
        ",rank,image,uncertainty,class_name\n0,1,cat/a.png,0.5,Siamese cat\n1,2,cat/b.png,0.1,dog\n2,3,cat/a.png,0,\n",
        "label,file\nSiamese cat,./cat/a.png\ndog,cat\\b.png\ndog,cat/b.png\n",
        "filename;category;note\ncat/a.png;Siamese cat\ncat/b.png;dog;seen, twice;\n",
        "image\tlabel\ncat/a.png\tSiamese cat\ncat/b.png\tdog\n".encode("utf-16"),
    ],
)
def test_tables_of_all_kinds_say_the_same(text: str | bytes, tmp_path: Path) -> None:
    assert labels_in(tmp_path, text) == {0: "Siamese cat", 1: "dog"}


def test_labels_of_another_encoding_are_no_class_names(tmp_path: Path) -> None:
    """As spreadsheets on Windows write them; a path, which no person reads, may be of any bytes."""
    with pytest.raises(
        StepclrError, match=r"0\.csv, line 3: the label 'k\\udce4se' is not UTF-8: save the table as CSV U"
    ):
        labels_in(tmp_path, "path,label\ncat/a.png,dog\ncat/b.png,k\xe4se\n".encode("cp1252"))
    assert labels_in(tmp_path, "path,label\ncat/b.png,k\xe4se\n") == {1: "k\xe4se"}


def test_names_are_found_however_they_are_written(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", NAMES[2])
    text = f'path,label\n{decomposed},{decomposed[:5]}\nodd.png,"crane, bird"\n"x,y.png",b\ntwin.png,t\n'
    assert labels_in(tmp_path, text) == {2: "caf\u00e9", 3: "crane, bird", 4: "b", 5: "t"}
    two = labels_in(tmp_path, "path,label\ncat/a.png,cat\n", "path;label\ncat/b.png;dog\ncat/a.png;cat\n")
    assert two == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            ["path,label\ncat/a.png,cat\ncat/a.png,dog\n"],
            "1 image has two labels, such as 'cat/a.png': 'cat' and 'dog' ({folder}/0.csv, line 3)",
        ),
        (
            ["path,label\ncat/a.png,cat\n", "path,label\ncat/a.png,dog\n"],
            "'cat/a.png': 'cat' and 'dog' ({folder}/1.csv, line 2)",
        ),
        (["path,label\ncat/a.png,crane, bird\n"], "0.csv, line 2: 3 cells instead of 2"),
        (["path,label\ncat/a.png\n"], "0.csv, line 2: 1 cells instead of 2"),
        (["path,label\nnone.png,cat\n"], "0.csv: 1 of 1 paths are not in the index, such as 'none.png'"),
        (["path,label\n,cat\ncat/a.png,cat\n"], "0.csv: 1 of 2 paths are not in the index, such as ''"),
        (["path,label,split\ncat/a.png,cat,train\ncat/b.png,,dev\n"], "the column split has 'dev'; it may have train"),
        (["path,label,split\ncat/a.png,cat,train\ncat/a.png,,val\n"], "two splits, such as 'cat/a.png': 'train' and"),
        (["path,label,split,Split\na,b,c,d\n"], "the columns split and Split say the same"),
        (["path,label\n.\\twin.png,cat\n"], "the index has several images that could be '.\\\\twin.png'"),
        (["path,file,label\na,b,c\n"], "the columns path and file say the same; keep one of them"),
        (["path;label;class\na;b;c\n"], "the columns label and class say the same"),
        (["cat/a.png;cat\n"], "must have a header with the columns path (or file, filename, image) and label"),
        (["name\tkind\n"], "its columns are name, kind"),
        ([""], "its columns are none"),
        ([b'path,label\n"cat'], "is not a CSV file"),
        ([b"\x00" * 200_000], "is not a CSV file"),
    ],
)
def test_what_says_two_things_or_nothing_is_refused(texts: list[str | bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(StepclrError) as error:
        labels_in(tmp_path, *texts)
    assert said.format(folder=tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
