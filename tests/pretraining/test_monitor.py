"""What a run measures on labeled images while it trains."""

import pytest
import torch

from stepclr.data.sources import open_images
from stepclr.metrics import effective_rank
from stepclr.model.build import build_encoder
from stepclr.model.features import represent
from stepclr.pretraining import monitor
from stepclr.pretraining.monitor import Monitor


def test_the_effective_rank_is_that_of_a_stated_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of labels, so that runs can be compared; of all images where there are fewer."""
    encoder = build_encoder("test_resnet", "small-stride2", size=28).eval()
    for limit, n in ((60, 40), (80, 40), (30, 30)):
        monkeypatch.setattr(monitor, "RANK_IMAGES", 40)
        watch = Monitor(open_images("sample:train", limit=limit))
        found = watch(encoder, "fp32")
        assert found["effective_rank_images"] == n
        h = torch.cat([represent(encoder, images)[0] for images in (watch.queries, watch.bank)])
        assert found["effective_rank"] == pytest.approx(effective_rank(h[:n]), rel=1e-4)
