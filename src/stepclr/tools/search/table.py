"""A folder whose LanceDB table has one row per image of a source, and is kept up to date with it.

    index/index.json            how the vectors were computed (`IndexMetadata`)
    index/encoder.safetensors   the encoder itself, so that a query is encoded by the same one
    index/images.lance          id, vector, path, label, thumbnail
    index/skipped.csv           images that cannot be read, if there are any

A row's id is a checksum of the image's path, label and bytes. Rows of images that the source no longer has are deleted,
and images that have no row are embedded, batch by batch. Each change is one LanceDB commit, which is visible completely
or not at all: wherever a process is killed, the table can be opened, and the same command does what is left.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from stepclr.data.images import ImageBatch, ImageSet, Indices
from stepclr.data.reading import as_words
from stepclr.data.sources import Source, open_images, sources_of
from stepclr.device import default_device, dtype_of
from stepclr.distributed import World, join
from stepclr.errors import StepclrError, check_suffix
from stepclr.io import locked, write_whole
from stepclr.model.encoder import Encoder
from stepclr.model.features import Written, represent, resized
from stepclr.model.files import load_encoder, save_encoder
from stepclr.model.timm_weights import from_anywhere, timm_name
from stepclr.model.weights import ENCODER_FILE
from stepclr.pretraining.run import Run
from stepclr.threads import Progress, pool
from stepclr.tools.embed import represented
from stepclr.tools.images import jpeg_thumbnail
from stepclr.tools.search.index import (
    METADATA_FILE,
    METADATA_KEY,
    TABLE,
    IndexMetadata,
    encoder_checksum,
    needed,
    open_table,
    read_metadata,
    reading,
)
from stepclr.tools.search.nearest import update_ann_index
from stepclr.tools.search.rows import ids_of, rows_of, schema_of

SKIPPED = "skipped.csv"
COMMIT_IMAGES = 1024  # images per rank and commit: what a kill can cost
DELETED_ROWS = 1000  # per commit


@dataclass(frozen=True)
class IndexUpdate:
    """What `build_index` did: rows in the index, added, removed, images skipped; recall at 10 if approximate."""

    rows: int
    added: int
    removed: int
    skipped: int
    recall: float | None = None


@dataclass(eq=False, repr=False)
class ThumbnailingImageSet(ImageSet):
    """An `ImageSet` that keeps a thumbnail of each image it reads, so that none is decoded twice."""

    thumbnails: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, images: ImageSet) -> "ThumbnailingImageSet":
        return cls(**{part.name: getattr(images, part.name) for part in fields(ImageSet)})

    def read_readable(self, indices: Indices) -> tuple[ImageBatch, Int64[np.ndarray, " kept"]]:
        images, kept = super().read_readable(indices)
        self.thumbnails |= zip(kept.tolist(), pool().map(jpeg_thumbnail, images), strict=True)
        return images, kept

    def gathered(self, world: World, kept: Int64[np.ndarray, " kept"]) -> list[bytes]:
        """The thumbnails of these images, each from the rank that has read it."""
        own = {str(i): content.hex() for i, content in self.thumbnails.items()}
        every = {int(i): bytes.fromhex(content) for part in world.objects(own) for i, content in part.items()}
        return [every[i] for i in kept.tolist()]


def build_index(
    run: str | os.PathLike[str],
    images: Source,
    out: str | os.PathLike[str],
    precision: str = "fp32",
    progress: Progress | None = None,
) -> IndexUpdate:
    """Build or update an index in the folder `out`: only images that are new or changed are embedded.

    Args:
        run: a run's folder, an `encoder.safetensors` or "timm:NAME".
        images: an `ImageSet` or anything `open_images` takes. Those that cannot be read are listed in skipped.csv.
        precision: of the encoder's arithmetic, "fp32" or "bf16".

    Above `nearest.EXACT_ROWS` rows an approximate search is built. Raises StepclrError if `out` is something else, was
    made by another encoder or from an unrelated source, is corrupt or in use; and if no image can be read.
    """
    return _build(load_encoder(run), run, images, Path(out), precision, progress)


def _build(
    encoder: Encoder,
    run: str | os.PathLike[str],
    images: Source,
    folder: Path,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> IndexUpdate:
    dtype, world = dtype_of(precision), join()
    needed("lancedb")
    encoder.to(default_device())
    source = open_images(images)
    smaller = resized(source, encoder)
    metadata = metadata_of(encoder, source, precision, run)
    with _table_writer(folder, encoder, metadata, source, world) as writer:
        # Only the first rank reads and writes the table; it tells the others which images are new.
        new = np.array(world.objects(writer.begin() if writer else None)[0], np.int64)
        step = COMMIT_IMAGES * world.size
        for start in range(0, len(new), step):
            indices = new[start : start + step]
            batch = ThumbnailingImageSet.of(smaller.take(indices))

            def report(done: int, _: int, start: int = start) -> None:
                if progress:
                    progress(start + done, len(new))

            h, kept = represent(encoder, batch, dtype, progress=report, world=world)
            thumbnails = batch.gathered(world, kept)
            if writer:
                writer.add(indices[kept], h.numpy(), thumbnails)
        source.ledger.unreadable |= world.union(source.skipped)
        return IndexUpdate(**world.objects(asdict(writer.finish()) if writer else None)[0])


def update_run_index(run: Path, progress: Progress | None = None) -> tuple[IndexUpdate, Encoder]:
    """Build or update RUN/index: an index of the images that the run was trained on, as they are now; and its encoder.

    Where the run has since been trained further, the index is built again. Raises StepclrError where another made it.
    """
    index, encoder, precision = run / "index", load_encoder(run), "fp32"
    metadata = read_metadata(index) if (index / METADATA_FILE).is_file() else None
    if metadata and metadata.checksum == encoder_checksum(encoder):
        precision = metadata.precision
    elif metadata and _is_of(run, metadata.run):
        shutil.rmtree(index)
    return _build(encoder, run, Run(run).images(), index, precision, progress), encoder


def _is_of(run: Path, recorded: str) -> bool:
    """Whether RUN/index was made by this run, by what it recorded then: this place, or one that is no more."""
    place = Path(recorded)
    return place.resolve().is_relative_to(run.resolve()) or not (place.exists() or timm_name(recorded))


def write_embeddings(
    run: str | os.PathLike[str],
    images: Source,
    out: str | os.PathLike[str],
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Written:
    """Write the embeddings of `images` to one file, without the images that cannot be read.

    .npz: `embeddings` float32 `[n, F]`, `paths`, `labels` int64 (-1: none), `classes`. .parquet: `vector`, `path`,
    `label` (null: none), `thumbnail` (JPEG), the columns of an index. Unreadable images go to `<out>.skipped.csv`.
    """
    path = Path(out)
    check_suffix(path, [".npz", ".parquet"], ", or be a folder for an index")
    parquet = needed("pyarrow.parquet") if path.suffix == ".parquet" else None
    world = join()  # first: it decides which GPU is this rank's
    encoder = load_encoder(run).to(default_device())
    source = resized(open_images(images), encoder)
    if parquet:
        source = ThumbnailingImageSet.of(source)
    h, kept = represented(encoder, source, precision, progress)
    if parquet and isinstance(source, ThumbnailingImageSet):
        rows = rows_of(source, kept, h, source.gathered(world, kept))
        metadata = metadata_of(encoder, source, precision, run)
        write = partial(parquet.write_table, rows.replace_schema_metadata({METADATA_KEY: metadata.to_json()}))
    else:
        paths = np.array([source.names[i] for i in kept], dtype=np.str_)
        classes = np.array(source.classes, dtype=np.str_)
        write = partial(np.savez, embeddings=h, paths=paths, labels=source.labels[kept], classes=classes)
    if world.first:
        write_whole(path, write)
        source.ledger.write(path.with_suffix(".skipped.csv"))
    return Written(len(kept), len(source.skipped))


def metadata_of(encoder: Encoder, source: ImageSet, precision: str, run: str | os.PathLike[str]) -> IndexMetadata:
    """How this encoder computes the vectors of this source."""
    return IndexMetadata(
        checksum=encoder_checksum(encoder),
        name=encoder.name,
        size=encoder.size,
        features=encoder.num_features,
        precision=precision,
        source=sources_of(source),
        classes=list(source.classes),
        run=from_anywhere(run),
        channels=encoder.channels,
        value_range=encoder.value_range,
        max_pixels=source.store.reading.max_pixels,
        damaged_shards=source.store.reading.damaged_shards,
    )


@contextmanager
def _table_writer(
    folder: Path, encoder: Encoder, metadata: IndexMetadata, source: ImageSet, world: World
) -> Iterator["_TableWriter | None"]:
    """The first rank's writer for the table, None for other ranks; at most one process may hold it."""
    if not world.first:
        yield None
        return
    # An empty folder is allowed, and so is one in which a process was killed before it wrote index.json.
    foreign = folder.exists() and not (folder / METADATA_FILE).is_file()
    if foreign and (not folder.is_dir() or any(not path.name.endswith(".tmp") for path in folder.iterdir())):
        raise StepclrError(f"{folder} exists and is not an index; choose another out")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"another process is writing in {folder}: let it finish"):
        yield _TableWriter(folder, encoder, metadata, source)


class _TableWriter:
    """Brings the table of a folder up to date with a source: `begin`, any number of `add`, `finish`."""

    def __init__(self, folder: Path, encoder: Encoder, metadata: IndexMetadata, source: ImageSet) -> None:
        self.folder, self.encoder, self.metadata, self.source = folder, encoder, metadata, source
        self.added = self.removed = 0

    def begin(self) -> list[int]:
        """Delete the rows of images that the source no longer has; return the indices of those that have no row."""
        old = self._open()
        with reading(self.folder):
            stored = set(self.table.search().select(["id"]).to_arrow()["id"].to_pylist())
        self.ids = ids_of(self.source)
        index_of = {id: index for index, id in enumerate(self.ids)}
        gone = sorted(stored - index_of.keys())
        # Another source that shares no image with the index is a mistyped name rather than a reason to delete all rows.
        if stored and len(gone) == len(stored) and old.source != self.metadata.source:
            raise StepclrError(
                f"{self.folder} is an index of {as_words(old.source)}, and {as_words(self.metadata.source)} has no "
                "image of the same name and content: choose another out"
            )
        new = sorted(index for id, index in index_of.items() if id not in stored)
        # The recall is measured again once the table has changed.
        recall = None if gone or new else old.recall
        self.metadata = replace(self.metadata, recall=recall, partitioned_rows=old.partitioned_rows)
        self._write_metadata()
        with reading(self.folder):
            for start in range(0, len(gone), DELETED_ROWS):
                # Ids are hexadecimal digits: no file name gets into SQL.
                ids = ", ".join(f"'{id}'" for id in gone[start : start + DELETED_ROWS])
                self.table.delete(f"id IN ({ids})")
        self.removed = len(gone)
        return new

    def add(self, indices: Int64[np.ndarray, " n"], h: Float32[np.ndarray, "n f"], thumbnails: list[bytes]) -> None:
        """One commit of new rows."""
        if len(indices):
            rows = rows_of(self.source, indices, h, thumbnails, [self.ids[i] for i in indices])
            with reading(self.folder):
                self.table.add(rows)
        self.added += len(indices)

    def finish(self) -> IndexUpdate:
        """List unreadable images and, if the table has changed, update its approximate search."""
        skipped = self.source.skipped
        self.source.ledger.write(self.folder / SKIPPED)
        with reading(self.folder):
            rows = self.table.count_rows()
        if not rows:
            raise StepclrError(f"no image of {self.source.source} can be read")
        if self.metadata.recall is None:
            recall, partitioned_rows = update_ann_index(self.table, self.folder, self.metadata.partitioned_rows)
            self.metadata = replace(self.metadata, recall=recall, partitioned_rows=partitioned_rows)
            self._write_metadata()
        return IndexUpdate(rows, self.added, self.removed, len(skipped), self.metadata.recall)

    def _open(self) -> IndexMetadata:
        """Open the table and return its metadata; create what a first run has not yet written.

        Raises StepclrError if another encoder or another precision made it.
        """
        file = self.folder / METADATA_FILE
        if not file.exists():
            self._write_metadata()
        old = IndexMetadata.from_json(file.read_bytes(), file)
        if old.checksum != self.metadata.checksum:
            raise StepclrError(
                f"{self.folder} was made by another encoder, {old.name} of {old.run}: pass that one, delete the index, "
                "or choose another out"
            )
        if old.precision != self.metadata.precision:
            raise StepclrError(f"{self.folder} was built with precision {old.precision}; pass the same")
        try:
            complete = encoder_checksum(load_encoder(self.folder)) == old.checksum
        except StepclrError:
            complete = False
        if not complete:
            save_encoder(self.encoder, self.folder / ENCODER_FILE)
        if not any((self.folder / f"{TABLE}.lance" / "_versions").glob("*.manifest")):  # nothing was ever committed
            with reading(self.folder):
                needed("lancedb").connect(self.folder).create_table(TABLE, schema=schema_of(self.metadata.features))
        _, self.table = open_table(self.folder)
        return old

    def _write_metadata(self) -> None:
        text = self.metadata.to_json()
        write_whole(self.folder / METADATA_FILE, lambda file: file.write(text))
