"""Work that is done side by side, in threads that share torch's; and that all of it is done on the device."""

import json
import subprocess
import time
from pathlib import Path
from threading import Barrier

import pytest
import torch
from touches import Forks

from stepclr.device import seeded, side_by_side, stop_if_unwanted, torch_threads


def test_side_by_side_works_on_as_many_items_as_torch_has_threads_and_divides_these() -> None:
    both = Barrier(2, timeout=20)

    def work(item: int) -> tuple[int, int]:
        both.wait()  # goes on only when another one is here
        return item, torch.get_num_threads()

    with torch_threads(2):
        assert list(side_by_side(work, range(4))) == [(0, 1), (1, 1), (2, 1), (3, 1)]
        assert torch.get_num_threads() == 2
    with torch_threads(5):
        assert list(side_by_side(work, range(2))) == [(0, 2), (1, 2)]


def test_with_one_thread_or_one_item_the_caller_does_the_work() -> None:
    def work(item: int) -> tuple[int, int]:
        return item, torch.get_num_threads()

    with torch_threads(1):
        assert list(side_by_side(work, range(3))) == [(0, 1), (1, 1), (2, 1)]
    with torch_threads(3):
        assert list(side_by_side(work, [7])) == [(7, 3)]


def test_where_one_fails_the_others_stop() -> None:
    began = []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("the first one")
        began.append(item)
        while True:
            stop_if_unwanted()
            time.sleep(0.01)

    with torch_threads(2), pytest.raises(ValueError, match="the first one"):
        list(side_by_side(work, range(9)))
    assert len(began) <= 2  # what had not begun does not begin
    stop_if_unwanted()  # says nothing outside


def test_seeded_numbers_are_the_same_whatever_other_threads_draw() -> None:
    def work(seed: int) -> list[float]:
        with seeded(seed):
            drawn = []
            for _ in range(3):
                drawn.append(float(torch.rand(())))
                time.sleep(0.005)
            return drawn

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    alone = [work(seed) for seed in range(4)]
    with torch_threads(4):
        assert list(side_by_side(work, range(4))) == alone
    assert torch.equal(torch.random.get_rng_state(), state)


def test_whole_commands_leave_no_tensor_on_the_cpu_and_a_step_waits_for_nothing(forked: Forks, tmp_path: Path) -> None:
    # In a process of its own: torch keeps a device until the process ends.
    command = [forked.python, str(Path(__file__).with_name("gpu_stand_in.py")), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    waits_by_steps = json.loads(ended.stdout)
    assert waits_by_steps["3"] == waits_by_steps["6"] > 0
