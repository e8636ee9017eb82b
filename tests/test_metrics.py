"""The metrics against loops in float64 and against answers that are known without computing."""

import math

import pytest
import torch
from torch import Tensor

from stepclr import metrics
from stepclr.metrics import alignment, contrastive_top1, effective_rank, nearest, uniformity, weighted_knn


def rows(n: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) * (1 + 9 * torch.rand(n, 1, generator=generator))


def unit(row: Tensor) -> Tensor:
    return torch.nn.functional.normalize(row.double(), dim=0)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_nearest_finds_the_largest_cosines(k: int, exclude_self: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = torch.nn.functional.normalize(rows(30, 5, seed=1))
    queries = bank if exclude_self else torch.nn.functional.normalize(rows(20, 5, seed=2))
    monkeypatch.setattr(metrics, "ROWS", 7)
    cosines, indices = nearest(queries, bank, k, exclude_self)
    for i, query in enumerate(queries):
        others = [j for j in range(30) if not (exclude_self and j == i)]
        expected = sorted(others, key=lambda j: -float(query.double() @ bank[j].double()))[:k]
        assert indices[i].tolist() == expected
        assert torch.allclose(cosines[i], bank[expected] @ query, atol=1e-6)
    assert [part.shape for part in nearest(queries[:0], bank, 3)] == [(0, 3), (0, 3)]


def knn_votes(bank: Tensor, labels: Tensor, h: Tensor, k: int, temperature: float) -> list[dict[int, float]]:
    """Wu et al. 2018, section 3.4, a query and a neighbor at a time: each class's weight."""
    all_votes = []
    for query in h:
        similar = sorted(
            ((float(unit(query) @ unit(row)), int(label)) for row, label in zip(bank, labels, strict=True))
        )
        votes: dict[int, float] = {}
        for cosine, label in similar[::-1][:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
        all_votes.append(votes)
    return all_votes


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 10.0])
@pytest.mark.parametrize("k", [1, 5, 20, 60, 1000])
def test_each_neighbor_votes_with_the_weight_of_its_similarity(k: int, temperature: float) -> None:
    """Also at T = 0.01, where exp(1 / T) does not fit into float32, and where k is larger than the bank."""
    bank, h = rows(60, 3, seed=1), rows(25, 3, seed=2)
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(3))
    votes = knn_votes(bank, labels, h, k, temperature)
    clear = [sorted(v.values())[-1] > 1.001 * sorted([0.0, *v.values()])[-2] for v in votes]
    assert sum(clear) >= 20
    expected = [max(v, key=lambda label: v[label]) for v in votes]
    predicted = weighted_knn(bank, labels, h, k, temperature).tolist()
    assert [p for p, sure in zip(predicted, clear, strict=True) if sure] == [
        e for e, sure in zip(expected, clear, strict=True) if sure
    ]


def test_a_temperature_that_float32_has_no_number_for_leaves_the_nearest_one() -> None:
    bank, labels, h = rows(60, 3, seed=1), torch.arange(60) % 5, rows(25, 3, seed=2)
    nearest = weighted_knn(bank, labels, h, k=1)
    assert torch.equal(weighted_knn(bank, labels, h, k=20, temperature=1e-300), nearest)


def test_the_defaults_are_20_neighbors_and_temperature_a_tenth() -> None:
    bank, labels, h = rows(200, 3, seed=1), torch.arange(200) % 7, rows(300, 3, seed=2)
    default = weighted_knn(bank, labels, h)
    assert torch.equal(default, weighted_knn(bank, labels, h, k=20, temperature=0.1))
    assert not torch.equal(default, weighted_knn(bank, labels, h, k=200, temperature=0.1))
    assert not torch.equal(default, weighted_knn(bank, labels, h, k=20, temperature=10.0))


def test_similar_and_few_beats_dissimilar_and_many() -> None:
    bank = torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * 3)
    labels, query = torch.tensor([0, 1, 1, 1]), torch.tensor([[5.0, 1.0]])
    assert weighted_knn(bank, labels, query, k=4).tolist() == [0]
    assert weighted_knn(bank, labels, query, k=4, temperature=10.0).tolist() == [1]  # almost a plain count


def test_a_query_far_from_everything_still_finds_its_nearest() -> None:
    bank, query = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.1]]), torch.tensor([[-1.0, 0.0]])
    assert weighted_knn(bank, torch.tensor([0, 2, 1]), query, temperature=0.01).tolist() == [2]


def test_a_draw_goes_to_the_lower_class() -> None:
    bank = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]])
    for labels in ([3, 1, 0], [1, 3, 0]):
        assert weighted_knn(bank, torch.tensor(labels), torch.tensor([[2.0, 0.0]]), k=2).tolist() == [1]


def test_a_long_list_of_queries_is_answered_row_by_row() -> None:
    bank, labels, h = rows(50, 4, seed=1), torch.arange(50) % 3, rows(2500, 4, seed=2)
    together = weighted_knn(bank, labels, h)
    assert torch.equal(together, torch.cat([weighted_knn(bank, labels, part) for part in h.split(100)]))


def test_neighbors_are_found_by_angle_not_by_length() -> None:
    bank, labels, h = rows(80, 4, seed=1), torch.arange(80) % 4, rows(40, 4, seed=2)
    lengths = 2.0 ** torch.arange(-20, 20)[:, None]
    assert torch.equal(weighted_knn(bank, labels, h), weighted_knn(bank * 1024, labels, h * lengths))


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 100.0])
def test_contrastive_top1_counts_the_anchors_that_find_their_positive(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    z_i = rows(20, 4, seed=1)
    z_j = z_i + noise * rows(20, 4, seed=2)
    z = [unit(row) for row in torch.cat([z_i, z_j])]
    hits = 0
    for anchor in range(40):
        similarity = {other: float(z[anchor] @ z[other]) for other in range(40) if other != anchor}
        hits += max(similarity, key=lambda other: similarity[other]) == (anchor + 20) % 40
    assert contrastive_top1(z_i, z_j).item() == pytest.approx(hits / 40)
    monkeypatch.setattr(metrics, "ROWS", 7)
    assert contrastive_top1(z_i, z_j).item() == pytest.approx(hits / 40)
    assert noise or hits == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_alignment_is_the_mean_squared_distance_of_pairs(dtype: torch.dtype) -> None:
    z_i, z_j = rows(15, 6, seed=1).to(dtype), rows(15, 6, seed=2).to(dtype)
    expected = sum(float((unit(a) - unit(b)).square().sum()) for a, b in zip(z_i, z_j, strict=True)) / 15
    assert alignment(z_i, z_j).item() == pytest.approx(expected, rel=1e-5)


def test_alignment_is_0_for_equal_directions_and_4_for_opposite_ones() -> None:
    z = rows(8, 5, seed=1)
    assert alignment(z, 3 * z).item() == pytest.approx(0, abs=1e-6)
    assert alignment(z, -z).item() == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_uniformity_is_the_log_of_the_mean_potential_of_pairs(dtype: torch.dtype) -> None:
    z = rows(15, 3, seed=1).to(dtype)
    pairs = [(a, b) for a in range(15) for b in range(a)]
    potentials = [math.exp(-2 * float((unit(z[a]) - unit(z[b])).square().sum())) for a, b in pairs]
    assert uniformity(z).item() == pytest.approx(math.log(sum(potentials) / len(pairs)), rel=1e-5)


def test_uniformity_is_0_when_collapsed_and_minus_4_at_right_angles() -> None:
    assert uniformity(torch.ones(9, 4)).item() == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.eye(12)).item() == pytest.approx(-4)
    assert uniformity(torch.tensor([[1.0, 0.0], [-7.0, 0.0]])).item() == pytest.approx(-8)


@pytest.mark.parametrize("directions", [1, 2, 5, 16])
def test_effective_rank_counts_directions_of_equal_spread(directions: int) -> None:
    axes = torch.linalg.qr(rows(16, 16, seed=4)).Q[:directions]
    h = torch.cat([axes, -axes]) * 3 + rows(1, 16, seed=5)  # the shift is the mean, and no direction
    assert effective_rank(h) == pytest.approx(directions, rel=1e-4)


def test_effective_rank_weighs_directions_of_unequal_spread() -> None:
    """Roy & Vetterli's definition by hand: singular values in shares 3/4 and 1/4."""
    h = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(h) == pytest.approx(math.exp(entropy), rel=1e-5)


@pytest.mark.parametrize("h", [torch.ones(6, 4), torch.zeros(6, 4), rows(1, 4, seed=1)])
def test_a_collapsed_representation_has_effective_rank_1(h: Tensor) -> None:
    assert effective_rank(h) == pytest.approx(1, abs=1e-3)


def test_effective_rank_of_noise_is_almost_its_width() -> None:
    assert 30 < effective_rank(torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))) <= 32
