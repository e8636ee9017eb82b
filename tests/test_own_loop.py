"""The example of a training loop of one's own: its loss falls as that of `stepclr.pretrain` does."""

import importlib.util
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import stepclr

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_loop.py"
EPOCHS, BATCH_SIZE, LIMIT = 4, 32, 256


@pytest.fixture
def own_loop() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loss_of_the_example_falls_as_that_of_pretrain(
    own_loop: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    losses = own_loop.train(EPOCHS, BATCH_SIZE, workers=0, out=str(tmp_path / "own.safetensors"), limit=LIMIT)
    torch.set_rng_state(state)
    assert capsys.readouterr().out.startswith(f"epoch 1 of {EPOCHS}: loss {losses[0]:.3f}")
    run = stepclr.pretrain(
        "sample:unlabeled",
        tmp_path / "run",
        recipe="sample",
        limit=LIMIT,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        precision="fp32",
        progress=False,
    )
    last = np.mean([line["loss"] for line in run.metrics if line["epoch"] == EPOCHS])
    assert losses[-1] == min(losses)  # at first, the rate still rises
    assert losses[-1] < math.log(2 * BATCH_SIZE - 1) - 0.3
    assert losses[-1] == pytest.approx(last, rel=0.1)
    encoder = stepclr.load_encoder(tmp_path / "own.safetensors")
    assert (encoder.name, encoder.stem, encoder.size) == ("test_resnet", "small-stride2", 28)
