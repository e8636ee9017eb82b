"""Versions of one image: those of a set stay together; test images that are in train too are counted, and the others
scored by themselves."""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool

from stepclr.data.copies import copies, fingerprints
from stepclr.data.details import groups
from stepclr.data.images import ImageSet
from stepclr.distributed import World
from stepclr.errors import StepclrError

# Of two images: versions are looked for up to here. Identical images are found in sets of any size.
MAX_PAIRS = 2_000_000_000
EXAMPLES = 5


@dataclass(frozen=True)
class Overlap:
    """How many test images are identical to one of train, how many are versions of one, and how many are neither.

    `near_identical` is None where there are too many pairs to look for versions; `examples` are the first ones.
    """

    identical: int
    near_identical: int | None
    clean: int
    examples: list[str]


def find_overlap(train: ImageSet, test: ImageSet, world: World) -> tuple[dict[str, object], Bool[np.ndarray, " m"]]:
    """The `Overlap` of two decoded sets, as JSON has it, and which test images are clean: in train neither as they are
    nor in another version (re-compressed, resized, slightly cropped or brightened), as `stepclr doctor` finds them.

    Raises StepclrError where no test image is.
    """
    near = len(train) * len(test) <= MAX_PAIRS
    pairs = copies(fingerprints(test), fingerprints(train), near) if world.first else None
    exact, versions = world.objects(pairs)[0]
    clean = np.ones(len(test), bool)
    clean[[i for i, _ in [*exact, *versions]]] = False
    examples = [f"{test.names[i]} = {train.names[j]}" for i, j in [*exact, *versions][:EXAMPLES]]
    found = Overlap(len(exact), len(versions) if near else None, int(clean.sum()), examples)
    if not found.clean:
        raise StepclrError(
            f"all {len(test)} images of {test.source} are in {train.source} too, such as {examples[0]}: scores on them "
            "mean nothing; name other test images"
        )
    return asdict(found), clean


def no_overlap(n: int, near: bool) -> tuple[dict[str, object], Bool[np.ndarray, " n"]]:
    """`find_overlap` of n test images none of which is in train. near: whether versions were looked for."""
    return asdict(Overlap(0, 0 if near else None, n, [])), np.ones(n, bool)


def version_groups(images: ImageSet, world: World) -> tuple[list[list[int]], bool]:
    """The images of a decoded set that are identical or versions of each other, directly or by way of others, group by
    group, and whether versions were looked for; there may be too many pairs."""
    near = len(images) ** 2 // 2 <= MAX_PAIRS
    pairs = copies(fingerprints(images), near=near) if world.first else None
    exact, versions = world.objects(pairs)[0]
    return groups([*exact, *versions]), near
