"""Reading ahead in a thread: every batch in its order, one ahead of the caller, and errors where they belong."""

import pytest

from stepclr.threads import read_ahead


def test_the_next_batch_is_read_while_one_is_used() -> None:
    read: list[int] = []

    def double(batch: int) -> int:
        read.append(batch)
        return 2 * batch

    batches = read_ahead(iter(range(5)), double)
    assert next(batches) == (0, 0)
    assert max(read) <= 1
    assert list(batches) == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert read == [0, 1, 2, 3, 4]
    assert list(read_ahead([], double)) == []


def test_an_error_of_a_batch_is_raised_when_its_turn_comes() -> None:
    batches = read_ahead([4, 2, 0, 1], lambda batch: 8 // batch)
    assert [next(batches), next(batches)] == [(4, 2), (2, 4)]
    with pytest.raises(ZeroDivisionError):
        next(batches)
