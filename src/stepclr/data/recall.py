"""What is known about files without reading them again: answers remembered by the files' stamps, like git's index."""

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stepclr.errors import StepclrError
from stepclr.io import checksum, checksum_of, published, user_folder
from stepclr.threads import pool

SETTLED = 2_000_000_000  # ns; a file changed more recently may change again without a new time stamp
UNREAD = "unread"  # in place of the checksum of a file that cannot be read
CHUNK = 256  # files whose stamps a thread reads at a time

Stamp = tuple[int, ...]


@dataclass(eq=False)
class Memory:
    """The remembered answers to one question about files; an answer counts while its file's stamp is the same."""

    path: Path
    entries: dict[str, object]
    """One string per file, its stamp and the answer: the garbage collector would go through lists."""

    @staticmethod
    def load(question: str, root: Path, folder: Path | None) -> "Memory":
        """The memory in `folder`, by default `$STEPCLR_CACHE`, for the files under `root`; empty if it is corrupt.

        question: names all that an answer depends on besides the file's bytes.
        """
        name = checksum_of(os.fsencode(root) + question.encode())
        path = (folder or user_folder("STEPCLR_CACHE", "decoded")) / f"index-{name}.json"
        try:
            entries = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            entries = {}
        return Memory(path, entries if isinstance(entries, dict) else {})

    def answers(self, paths: Sequence[str], stamped: Sequence[Stamp]) -> list[str | None]:
        """The answer for each file, None where it is not known."""
        answers: list[str | None] = []
        for path, stamp in zip(paths, stamped, strict=True):
            entry = self.entries.get(path)
            known = isinstance(entry, str) and stamp and entry.startswith(_written(stamp))
            answers.append(entry.removeprefix(_written(stamp)) if isinstance(entry, str) and known else None)
        return answers


def recall(
    question: str,
    root: Path,
    paths: Sequence[str],
    stamped: Sequence[Stamp],
    ask: Callable[[int], str | None],
    folder: Path | None = None,
) -> list[str | None]:
    """The answer for each file: the remembered one, else `ask(i)`, which is None where there is no answer."""
    memory = Memory.load(question, root, folder)
    answers = memory.answers(paths, stamped)
    unknown = [i for i, answer in enumerate(answers) if answer is None and stamped[i]]
    if not unknown:
        return answers
    # A file that changes after this moment gets a stamp that differs from the remembered one.
    now = time.time_ns()
    for i, answer in zip(unknown, pool().map(ask, unknown), strict=True):
        answers[i] = answer
        if answer is not None and max(stamped[i][1:]) < now - SETTLED:
            memory.entries[paths[i]] = _written(stamped[i]) + answer
    # Where nothing can be written, the question is asked again next time.
    with suppress(StepclrError), published(memory.path) as file:
        file.write(json.dumps(memory.entries).encode())
    return answers


def checksums(root: Path, paths: Sequence[str], folder: Path | None = None) -> list[str]:
    """A checksum of each file's bytes, `paths` relative to `root`; only files that changed are read."""
    answers = recall("contents", root, paths, stamps(root, paths), lambda i: checksum(root / paths[i]), folder)
    return [answer or UNREAD for answer in answers]


def known_checksums(root: Path, paths: Sequence[str], folder: Path | None = None) -> list[str] | None:
    """`checksums` without reading any file; None if a file would have to be read."""
    stamped = stamps(root, paths)
    answers = Memory.load("contents", root, folder).answers(paths, stamped)
    if any(answer is None and stamp for answer, stamp in zip(answers, stamped, strict=True)):
        return None
    return [answer or UNREAD for answer in answers]


def stamps(root: Path, paths: Sequence[str]) -> list[Stamp]:
    """(size, time of the last change, time of the last change of its entry) of each file; () if it does not exist."""
    parts = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    stamped = pool().map(lambda part: [_stamp(os.path.join(root, path)) for path in part], parts)
    return list(itertools.chain.from_iterable(stamped))


def _written(stamp: Stamp) -> str:
    return f"{' '.join(map(str, stamp))} "


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
