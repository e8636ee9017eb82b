"""Work shared out, and reading ahead in a thread: all of it, in its order, and errors where they belong."""

import pytest

from stepclr.threads import read_ahead, share_out


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


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 7, 64, 1000])
def test_each_piece_is_handed_out_once(n: int, threads: int) -> None:
    seen: list[int] = []
    share_out("test", lambda first, last: seen.extend(range(first, last)), n, 3, threads)
    assert sorted(seen) == list(range(n))


def test_an_error_in_a_thread_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        share_out("test", lambda first, _: print(1 // first), 100, 1, 2)
