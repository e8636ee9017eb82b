"""What losses take: labels, temperatures and projections of any kind that has a meaning; one line for the others."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from stepclr import StepclrError, contrastive, nt_xent, supcon
from stepclr.loss import tiles


@pytest.mark.parametrize("default", [torch.float64, torch.float32])
def test_a_default_type_of_the_user_does_not_choose_the_precision(default: torch.dtype) -> None:
    """Processors with AMX round to bfloat16 under the setting that others need."""
    program = f"""
import torch, stepclr
torch.set_default_dtype({default})
stepclr.nt_xent(torch.randn(4, 8), torch.randn(4, 8))
torch.set_default_dtype(torch.float32)
torch.manual_seed(0)
z = torch.randn(2, 256, 32)
print(float(stepclr.nt_xent(z[0], z[1], 0.1)) - float(stepclr.nt_xent(z[0].double(), z[1].double(), 0.1)))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert abs(float(told.stdout)) < 2e-6


def test_a_default_device_of_the_user_changes_nothing() -> None:
    tiles.exact_setting.cache_clear()
    with torch.device("meta"):
        found = tiles.exact_setting()
    tiles.exact_setting.cache_clear()
    assert found == tiles.exact_setting()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-120, -40, 60, 120])
def test_projections_may_have_any_length(dtype: torch.dtype, power: int) -> None:
    """A power of 2 is exact, so that nothing but the gradient's own scale changes."""
    z = torch.randn(2, 24, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    scaled = (z * 2.0**power).requires_grad_()
    z.requires_grad_()
    plain, far = nt_xent(z[0], z[1], 0.1), nt_xent(scaled[0], scaled[1], 0.1)
    assert torch.equal(plain, far)
    (expected,), (found,) = torch.autograd.grad(plain, z), torch.autograd.grad(far, scaled)
    torch.testing.assert_close(found * 2.0**power, expected, rtol=1e-5, atol=1e-9)


def test_projections_that_are_not_finite_are_not_hidden() -> None:
    z = torch.randn(2, 8, 4)
    z[0, 3, 1] = torch.inf
    assert nt_xent(z[0], z[1]).isnan()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(6, 1, dtype=torch.long), r"labels must be whole numbers \[N\], not int64 \[6, 1\]"),
        (torch.zeros(6), r"labels must be whole numbers \[N\], not float32 \[6\]"),
        (torch.tensor(3), r"labels must be whole numbers \[N\], not int64 \[\]"),
        (None, r"labels must be whole numbers \[N\]: "),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, words: str) -> None:
    z = torch.randn(2, 6, 4)
    with pytest.raises(StepclrError, match=words):
        supcon(z[0], z[1], labels)
    if labels is not None:
        with pytest.raises(StepclrError, match=words.replace("labels", "groups")):
            contrastive(z[0], labels, 0.5)


@pytest.mark.usefixtures("unchecked")
def test_labels_of_any_whole_type_are_the_same() -> None:
    z, labels = torch.randn(2, 6, 4), torch.tensor([0, 1, 0, 1, 2, 2])
    expected = supcon(z[0], z[1], labels)
    for dtype in (torch.int8, torch.uint8, torch.uint16, torch.int32):
        assert torch.equal(supcon(z[0], z[1], labels.to(dtype)), expected)
    with_two = supcon(z[0], z[1], labels % 2)
    assert torch.equal(supcon(z[0], z[1], labels % 2 == 1), with_two)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("temperature", "words"),
    [("0.5", "temperature must be a number, not '0.5'"), ([0.5], "must be a number"), (math.inf, "a finite number")],
)
def test_a_temperature_of_another_kind_is_refused(temperature: Any, words: str) -> None:
    z = torch.randn(2, 6, 4)
    with pytest.raises(StepclrError, match=words):
        nt_xent(z[0], z[1], temperature)


@pytest.mark.usefixtures("unchecked")
def test_arrays_are_not_taken_for_lists_of_views() -> None:
    with pytest.raises(StepclrError, match="projections must be tensors, not ndarray"):
        nt_xent(*np.zeros((2, 5, 4), np.float32))
