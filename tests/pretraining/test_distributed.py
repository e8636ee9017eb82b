"""Many ranks take the step that one process takes: loss and whole gradient, for every loss, in float64 and float32.

The steps are in `ranks_job.py`; here torchrun starts it with 2 and 4 processes (gloo), and they are held against one.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks_job import CASES, N, mutants, train
from torch import Tensor
from touches import Forks

import stepclr
from stepclr.distributed import ALONE, World
from stepclr.pretraining.batches import batches

Results = dict[str, dict[str, Tensor]]


def torchrun(python: str, count: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node COUNT WORDS`, and what it said."""
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *words]
    helpers = str(Path(__file__).parents[1])  # small.py, among others
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.fixture(scope="module")
def alone() -> Results:
    return {name: train(case, ALONE) for name, case in CASES.items()}


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 4])
def together(forked: Forks, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("ranks") / "results.pt"
    done = torchrun(forked.python, request.param, str(Path(__file__).with_name("ranks_job.py")), str(out))
    assert not done.returncode, done.stderr
    results: Results = torch.load(out, weights_only=True)
    return results


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Loss and whole gradient agree: to 1e-10 in float64, to 1e-4 in float32."""
    error = 1e-10 if expected["loss"].dtype == torch.float64 else 1e-4
    assert (found["loss"] - expected["loss"]).abs() <= error * expected["loss"].abs()
    assert found["gradient"].shape == expected["gradient"].shape
    assert (found["gradient"] - expected["gradient"]).norm() <= error * expected["gradient"].norm()


@pytest.mark.parametrize("case", CASES)
def test_ranks_take_the_step_of_one_process(case: str, together: Results, alone: Results) -> None:
    check(together[case], alone[case])


@pytest.mark.parametrize("case", ["nt_xent", "supcon", "cross-entropy"])
def test_running_statistics_are_those_of_the_whole_batch(case: str, together: Results, alone: Results) -> None:
    torch.testing.assert_close(together[case]["buffers"], alone[case]["buffers"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mutant", mutants())
def test_the_check_rejects_wrong_gathers(mutant: str, together: Results, alone: Results) -> None:
    with pytest.raises(AssertionError):
        check(together[mutant], alone["nt_xent"])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_batches_and_so_views_do_not_depend_on_the_number_of_ranks(world: int, balanced: bool) -> None:
    images = stepclr.open_images("sample:train", limit=61)
    options: dict[str, Any] = {"seed": 3, "epoch": 2, "batch_size": 18, "start": 1, "balanced": balanced}
    whole = list(batches(images, **options))
    shares = [list(batches(images, **options, world=World(rank, world))) for rank in range(world)]
    for k, (pixels, labels, samples) in enumerate(whole):
        assert np.array_equal(np.concatenate([share[k].samples for share in shares]), samples)
        assert torch.equal(torch.cat([share[k].labels for share in shares]), labels)
        assert torch.equal(torch.cat([torch.as_tensor(share[k].images) for share in shares]), torch.as_tensor(pixels))


def test_what_ranks_list_is_listed_once() -> None:
    """All know what the source itself left out; each, what it could not read."""

    class Two(World):
        def objects(self, value: Any) -> list[Any]:
            return json.loads(json.dumps([value, [("../up.png", "leads out"), ("b.png", "truncated")]]))

    listed = Two(0, 2).union([("../up.png", "leads out"), ("a.png", "truncated")])
    assert listed == [("../up.png", "leads out"), ("a.png", "truncated"), ("b.png", "truncated")]


def test_alone_every_exchange_is_with_oneself() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert ALONE.gather_with_gradient(x, [3]) is x
    assert ALONE.sum(x) is x
    assert torch.equal(ALONE.gather(x, [3]), x)
    assert ALONE.objects({"a": 1}) == [{"a": 1}]
    assert (ALONE.share(N), ALONE.total(2.5), ALONE.first) == (slice(0, N), 2.5, True)
