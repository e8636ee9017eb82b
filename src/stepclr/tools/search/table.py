"""A folder whose LanceDB table has one row an image of a source, and follows it.

    index/index.json            how the vectors were made (`Made`)
    index/encoder.safetensors   the encoder itself, so that a query meets the same one
    index/images.lance        id, vector, path, label, thumbnail
    index/skipped.csv           images that cannot be read, if there are any

A row's id is a hash of the image's path, label and bytes. What the table has and the source has not is deleted, what
the source has and the table has not is embedded, lot by lot; each is one commit of LanceDB, there whole or not at all.
So wherever a process is killed, the table can be opened, and the same command does what is left.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from stepclr.data.decode import source_side
from stepclr.data.images import ImageBatch, ImageSet, Indices
from stepclr.data.sources import Source, open_images
from stepclr.data.stores import Encoded, Pixels
from stepclr.device import default_device
from stepclr.distributed import World, join
from stepclr.errors import StepclrError, check_suffix, choose
from stepclr.io import blake, held, user_folder, write_whole
from stepclr.model.encoder import Encoder
from stepclr.model.features import Written, represent
from stepclr.model.files import FILE, load_encoder, save_encoder
from stepclr.threads import Progress, pool
from stepclr.tools.embed import DTYPES, represented, write_npz
from stepclr.tools.images import jpeg_thumbnail
from stepclr.tools.search.index import FOLDER_FILE, KEY, TABLE, Made, as_text, checksum_of, needed, open_table, reading
from stepclr.tools.search.nearest import lay_out

SKIPPED = "skipped.csv"
LOT = 1024  # images of a rank between two commits: what a kill can cost
DELETED = 1000  # rows by one commit


@dataclass(frozen=True)
class Built:
    """How many images an index has, how many came, went, could not be read; and recall at 10 if approximate."""

    rows: int
    added: int
    removed: int
    skipped: int
    recall: float | None = None


@dataclass(eq=False, repr=False)
class Watched(ImageSet):
    """An `ImageSet` that keeps a thumbnail of each image it reads, so that none is decoded twice."""

    thumbnails: dict[int, bytes] | None = None

    @classmethod
    def of(cls, images: ImageSet) -> "Watched":
        return cls(**{part.name: getattr(images, part.name) for part in fields(ImageSet)}, thumbnails={})

    def read_readable(self, indices: Indices) -> tuple[ImageBatch, Int64[np.ndarray, " kept"]]:
        images, kept = super().read_readable(indices)
        if self.thumbnails is not None:
            self.thumbnails |= zip(kept.tolist(), pool().map(jpeg_thumbnail, images), strict=True)
        return images, kept

    def gathered(self, world: World) -> dict[int, bytes]:
        """Every rank's thumbnails, by the images' numbers."""
        own = {str(i): content.hex() for i, content in (self.thumbnails or {}).items()}
        return {int(i): bytes.fromhex(content) for each in world.objects(own) for i, content in each.items()}


def build_index(
    run: str | os.PathLike[str],
    images: Source,
    out: str | os.PathLike[str],
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Built:
    """Make the folder `out` an index of `images`, or bring it up to date: only what is new or changed is embedded.

    Args: run: a run's folder or an `encoder.safetensors`. images: an `ImageSet` or anything `open_images` takes.
    Images that cannot be read are listed in `out`/skipped.csv. Above `nearest.EXACT` an approximate search is built.

    Raises StepclrError where `out` is something else, was made by another encoder or of quite another source, is
    damaged, or another process is at it; and where no image can be read.
    """
    dtype, world, folder = DTYPES[choose("precision", precision, DTYPES)], join(), Path(out)
    needed("lancedb")
    encoder = load_encoder(run).to(default_device())
    source = open_images(images)
    made = made_by(encoder, source, precision, run)
    with _kept(folder, encoder, made, source, world) as keeper:
        # The others wait for the first rank's word on what is new: it alone reads and writes the table.
        new = np.array(world.objects(keeper.begin() if keeper else None)[0], np.int64)
        lot, skipped = LOT * world.size, list(source.skipped)
        waiting = _reduced(source, source_side(encoder.size))
        for start in range(0, len(new), lot):
            numbers = new[start : start + lot]
            some = Watched.of(replace(waiting.take(numbers), skipped=[]))

            def told(done: int, _: int, start: int = start) -> None:
                if progress:
                    progress(start + done, len(new))

            h, kept = represent(encoder, some, dtype, progress=told, world=world)
            thumbnails = some.gathered(world)
            skipped += world.union(some.skipped)
            if keeper:
                keeper.add(numbers[kept], h.numpy(), [thumbnails[i] for i in kept.tolist()])
        source.skipped = list(dict.fromkeys(skipped))
        return Built(**world.objects(asdict(keeper.finish()) if keeper else None)[0])


def write_parquet(
    run: str | os.PathLike[str], images: Source, out: Path, precision: str, progress: Progress | None
) -> Written:
    """Write `out` with the columns of an index; images that cannot be read go to `<out>.skipped.csv`."""
    parquet = needed("pyarrow.parquet")

    def watched(images: ImageSet, side: int) -> Watched:
        return Watched.of(_reduced(images, side))

    encoder, source, h, kept = represented(run, images, precision, progress, watched)
    assert isinstance(source, Watched)
    world = join()
    thumbnails = source.gathered(world)
    if world.first:
        rows = _rows(source, kept, h, [thumbnails[i] for i in kept.tolist()])
        rows = rows.replace_schema_metadata({KEY: made_by(encoder, source, precision, run).to_json()})
        write_whole(out, lambda file: parquet.write_table(rows, file))
        source.list_skipped(out.with_suffix(".skipped.csv"))
    return Written(len(kept), len(source) - len(kept))


def made_by(encoder: Encoder, source: ImageSet, precision: str, run: str | os.PathLike[str]) -> Made:
    """How vectors are made that this encoder makes of this source."""
    named = Path(source.source)
    return Made(
        checksum_of(encoder),
        encoder.name,
        encoder.size,
        encoder.num_features,
        precision,
        str(named.absolute()) if named.exists() else source.source,
        list(source.classes),
        str(Path(run).absolute()),
    )


@contextmanager
def _kept(folder: Path, encoder: Encoder, made: Made, source: ImageSet, world: World) -> Iterator["_Keeper | None"]:
    """What keeps the folder's table, on the first rank, which no second process may do at the same time."""
    if not world.first:
        yield None
        return
    foreign = folder.exists() and not (folder / FOLDER_FILE).is_file()
    if foreign and (not folder.is_dir() or any(not path.name.endswith(".tmp") for path in folder.iterdir())):
        raise StepclrError(f"--out {folder} is there and is no index of stepclr: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, f"another process is writing in {folder}: let it finish"):
        yield _Keeper(folder, encoder, made, source)


class _Keeper:
    """The table of a folder, brought in step with a source: `begin`, `add` as often as need be, `finish`."""

    def __init__(self, folder: Path, encoder: Encoder, made: Made, source: ImageSet) -> None:
        self.folder, self.encoder, self.made, self.source = folder, encoder, made, source
        self.added = self.removed = 0

    def begin(self) -> list[int]:
        """Delete what the source no longer has; which of its images are new, as positions."""
        self._open()
        with reading(self.folder):
            there = set(self.table.search().select(["id"]).to_arrow()["id"].to_pylist())
        self.ids = _ids(self.source)
        wanted = {name: position for position, name in enumerate(self.ids)}
        gone = sorted(there - wanted.keys())
        old = self.old
        if there and len(gone) == len(there) and old.source != self.made.source:
            raise StepclrError(
                f"{self.folder} is of {old.source}, of which {self.made.source} has no image: name another --out"
            )
        new = sorted(position for name, position in wanted.items() if name not in there)
        changed = bool(gone or new)
        self.made = replace(self.made, recall=None if changed else old.recall, laid_out=old.laid_out)
        self._write_made()
        with reading(self.folder):
            for start in range(0, len(gone), DELETED):  # ids are hexadecimal digits: no name gets into SQL
                self.table.delete("id IN ({})".format(", ".join(f"'{name}'" for name in gone[start : start + DELETED])))
        self.removed = len(gone)
        return new

    def add(self, positions: Int64[np.ndarray, " n"], h: Float32[np.ndarray, "n f"], thumbnails: list[bytes]) -> None:
        """One commit of new rows."""
        if len(positions):
            rows = _rows(self.source, positions, h, thumbnails, [self.ids[i] for i in positions])
            with reading(self.folder):
                self.table.add(rows)
        self.added += len(positions)

    def finish(self) -> Built:
        skipped = self.source.skipped
        (self.folder / SKIPPED).unlink(missing_ok=True)
        self.source.list_skipped(self.folder / SKIPPED)
        with reading(self.folder):
            rows = self.table.count_rows()
        if not rows:
            raise StepclrError(f"no image of {self.source.source} can be read")
        if self.made.recall is None:
            recall, laid_out = lay_out(self.table, self.folder, self.made.laid_out)
            self.made = replace(self.made, recall=recall, laid_out=laid_out)
            self._write_made()
        return Built(rows, self.added, self.removed, len(skipped), self.made.recall)

    def _open(self) -> None:
        """The table, created where a first run has not come so far; refused where another encoder made it."""
        if not (self.folder / FOLDER_FILE).exists():
            self._write_made()
        self.old = Made.from_json((self.folder / FOLDER_FILE).read_bytes(), self.folder / FOLDER_FILE)
        if self.old.checksum != self.made.checksum:
            raise StepclrError(
                f"{self.folder} was made by another encoder, {self.old.name} of {self.old.run}: "
                "give that one, or name another --out"
            )
        if self.old.precision != self.made.precision:
            raise StepclrError(f"{self.folder} was made with --precision {self.old.precision}: give it again")
        if not _holds(self.folder, self.made):
            save_encoder(self.encoder, self.folder / FILE)
        if not any((self.folder / f"{TABLE}.lance" / "_versions").glob("*.manifest")):  # nothing was ever committed
            with reading(self.folder):
                needed("lancedb").connect(self.folder).create_table(TABLE, schema=schema_of(self.made.features))
        _, self.table = open_table(self.folder)

    def _write_made(self) -> None:
        text = self.made.to_json()
        write_whole(self.folder / FOLDER_FILE, lambda file: file.write(text))


def _holds(folder: Path, made: Made) -> bool:
    try:
        return checksum_of(load_encoder(folder)) == made.checksum
    except StepclrError:
        return False


def schema_of(features: int, id: bool = True) -> Any:
    """The columns of a table, or without `id` of a .parquet."""
    import pyarrow as pa

    columns = [("vector", pa.list_(pa.float32(), features)), ("path", pa.string()), ("label", pa.string())]
    return pa.schema([("id", pa.string())] * id + [*columns, ("thumbnail", pa.binary())])


def _rows(
    source: ImageSet,
    positions: Int64[np.ndarray, " n"],
    h: Float32[np.ndarray, "n features"],
    thumbnails: list[bytes],
    ids: Sequence[str] | None = None,
) -> Any:
    """An Arrow table of images."""
    import pyarrow as pa

    labels = source.labels[positions].tolist()
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(h.ravel()), h.shape[1]),
        "path": [as_text(source.names[i]) for i in positions.tolist()],
        "label": [None if label < 0 else as_text(source.classes[label]) for label in labels],
        "thumbnail": thumbnails,
    }
    return pa.table(columns | ({"id": list(ids)} if ids else {}), schema=schema_of(h.shape[1], id=bool(ids)))


def _ids(source: ImageSet) -> list[str]:
    """Of each image a hash of its path, its label and its bytes."""
    store = source.store
    if isinstance(store, Encoded):
        prints = store.contents(source.rows, user_folder("STEPCLR_CACHE", "decoded"), True) or []
    else:
        prints = [_hash(store.image(row, None).numpy().tobytes()) for row in source.rows.tolist()]
    labels = ["" if label < 0 else source.classes[label] for label in source.labels.tolist()]
    each = zip(source.names, labels, prints, strict=True)
    return [_hash("\0".join(map(as_text, parts)).encode()) for parts in each]


def _hash(content: bytes) -> str:
    digest = blake()
    digest.update(content)
    return digest.hexdigest()


def _reduced(source: ImageSet, side: int) -> ImageSet:
    """The source as `decoded` gives it, but none of its images left out: they are counted by their places."""
    if isinstance(source.store, Pixels):
        return source.decoded(side, budget=0)
    return replace(source, short_side=min(side, source.short_side or side), skipped=list(source.skipped))


def write_embeddings(
    run: str | os.PathLike[str],
    images: Source,
    out: str | os.PathLike[str],
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Written:
    """Write `out` (.npz): `embeddings` float32 `[n, F]`, `paths`, `labels` int64 (-1: none), `classes`.

    Or a .parquet of `vector`, `path`, `label` (null: none) and `thumbnail` (JPEG), as `search.build_index` keeps them.
    Images that cannot be read are left out and listed in `<out>.skipped.csv`.
    """
    path = Path(out)
    check_suffix(path, [".npz", ".parquet"], ", or be a folder for an index")
    write = write_npz if path.suffix == ".npz" else write_parquet
    return write(run, images, path, precision, progress)
