"""What a run measures on labeled images while it trains."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepclr.data.sources import open_images
from stepclr.metrics import effective_rank
from stepclr.model.build import build_encoder
from stepclr.model.features import represent
from stepclr.pretraining import monitor
from stepclr.pretraining.monitor import Monitor


class Brightness(nn.Module):
    """h of two numbers, at right angles for black and white."""

    def forward(self, x: Tensor) -> Tensor:
        light = x.mean((1, 2, 3))
        return torch.stack([light, 1 - light], 1)


def test_the_effective_rank_is_that_of_a_stated_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of labels, so that runs can be compared; of all images where there are fewer."""
    encoder = build_encoder("test_resnet", "small-stride2", size=28).eval()
    for limit, n in ((60, 40), (80, 40), (30, 30)):
        monkeypatch.setattr(monitor, "RANK_IMAGES", 40)
        watch = Monitor(open_images("sample:train", limit=limit))
        found = watch(encoder, "fp32")
        assert found["effective_rank_images"] == n
        assert found["knn_images"] == limit  # too few for a fifth of them: each is asked in its turn
        h = torch.cat([represent(encoder, images)[0] for images in (watch.queries, watch.bank)])
        assert found["effective_rank"] == pytest.approx(effective_rank(h[:n]), rel=1e-4)


def test_of_few_labeled_images_each_is_scored_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black and white images, two of which have the label of the other kind: wrong, wherever they are drawn."""
    kinds = np.arange(50) % 2
    pixels = np.zeros((50, 28, 28, 3), np.uint8) + 255 * kinds.astype(np.uint8)[:, None, None, None]
    labels = kinds.copy()
    labels[[3, 40]] = 1 - labels[[3, 40]]
    watch = Monitor(open_images((pixels, labels)))
    encoder = build_encoder(Brightness(), size=28).eval()
    found = watch(encoder, "fp32")
    assert (found["knn"], found["knn_images"]) == (48 / 50, 50)
    monkeypatch.setattr(monitor, "FEW", 10)
    assert watch(encoder, "fp32")["knn_images"] == 10
