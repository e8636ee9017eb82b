"""A training step on a stand-in for a GPU: the device "meta" under fake tensors, which have no values.

What mixes devices fails, and so does what looks at a value, for which the host would wait for a GPU. The copies to a
GPU, with their stream and page-locked memory, are tried with doubles of torch.cuda's parts.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small import untrained_run
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

import stepclr
from stepclr.config import PretrainConfig
from stepclr.device import default_device, seeded
from stepclr.distributed import ALONE, World
from stepclr.loss.tiles import exact_setting
from stepclr.metrics import alignment, contrastive_top1, uniformity, weighted_knn
from stepclr.model.classifier import Classifier
from stepclr.pretraining import api, classifier, gpu_cache, loop
from stepclr.pretraining.batches import batches
from stepclr.pretraining.gpu_cache import on_device, upload
from stepclr.pretraining.loop import put_on_device, ready_to_train
from stepclr.pretraining.model import build_model
from stepclr.pretraining.optim import build_optimizer
from stepclr.pretraining.resolve import resolve, views_of
from stepclr.tools import embed as embedding
from stepclr.tools.search import table
from stepclr.views.keys import view_keys

META = torch.device("meta")
SETTINGS: dict[str, Any] = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "batch_size": 8,
    "precision": "fp32",
    "optimizer": "lars",  # torch's fused optimizers know no device "meta"
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which "meta" stands for a GPU."""
    exact_setting()  # it multiplies numbers, once for a process
    for name in ("autocast", "get_autocast_dtype", "is_autocast_enabled"):  # these know no device "meta"
        monkeypatch.setattr(torch, name, as_on_cpu(getattr(torch, name)))

    @contextmanager
    def context() -> Iterator[None]:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield

    return context


def as_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(device: str, *arguments: Any, **options: Any) -> Any:
        return function("cpu" if device == "meta" else device, *arguments, **options)

    return called


def images() -> stepclr.ImageSet:
    pixels = stepclr.open_images("sample:train", limit=16).read(range(16))
    assert isinstance(pixels, Tensor)
    return stepclr.open_images((pixels.numpy(), np.arange(16) % 4 - 1))


def unchanged(views: Any) -> Any:
    return views


def one_step(stand_in: Callable[[], Any], changed: Callable[[Any], Any] = unchanged, **options: Any) -> Any:
    """One step of the loop on the stand-in: the model, the loss, the projections, the batch."""
    seen = images()
    config = PretrainConfig(**SETTINGS | options)
    teacher = None
    if config.loss == "distill":
        teacher = Classifier(stepclr.build_encoder("test_resnet", "small-stride2", size=28), ["a", "b", "c"])
        config = PretrainConfig(**SETTINGS | options, teacher="-")
    decided = resolve(config, seen, teacher)
    model, views = build_model(decided, seen, teacher), views_of(decided)
    known = view_keys(0, 0, range(8))
    numbers = known.numpy()  # a key is a number of the host, never one of a GPU: under fake tensors it has no value

    def with_known_keys(images: Any, keys: Tensor) -> Tensor:
        return views(images, numbers[: len(keys)])

    with stand_in(), ExitStack() as stack:
        put_on_device(model, teacher, META, ALONE)
        optimizer = build_optimizer(model, decided)
        batch = next(batches(on_device(seen, META, 10**8), 0, 0, 8, 0, device=META))
        _, take_step = ready_to_train(stack, model, teacher, decided, META, ALONE)
        loss, z = take_step(optimizer, changed(with_known_keys), batch, known)
    return model, loss, z, batch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "dcl"},
        {"loss": "supcon"},
        {"loss": "cross-entropy"},
        {"loss": "distill", "policy": "crop", "views": 1},
        {"micro_batch": 4},
        {"checkpoint_activations": True},
        {"policy": "simaugment", "views": 3},
        {"temperature": 0.01},
        {"normalize_h": True, "head": "16-8:plain"},
    ],
    ids=str,
)
def test_a_step_mixes_no_devices_and_waits_for_no_value(stand_in: Callable[[], Any], options: dict[str, Any]) -> None:
    model, loss, z, batch = one_step(stand_in, **options)
    assert batch.images.device == batch.labels.device == loss.device == META
    assert loss.dtype == torch.float32
    for projections in z:
        assert projections.device == META
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.device, parameter.grad.dtype) == (META, torch.float32), name


def waits(views: Any) -> Any:
    def with_a_value(*batch: Any) -> Tensor:
        x: Tensor = views(*batch)
        return x * x.mean().item()

    return with_a_value


def chooses(views: Any) -> Any:
    def with_a_mask(*batch: Any) -> Tensor:
        x: Tensor = views(*batch)
        return x[:, x.mean((0, 2, 3, 4)) > 0]

    return with_a_mask


def left_behind(views: Any) -> Any:
    def with_a_tensor_of_the_cpu(*batch: Any) -> Tensor:
        x: Tensor = views(*batch)
        return x + torch.ones(x.shape)

    return with_a_tensor_of_the_cpu


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (waits, DataDependentOutputException),
        (chooses, DynamicOutputShapeException),
        (left_behind, RuntimeError),
    ],
)
def test_the_stand_in_notices_what_a_gpu_would_suffer_from(
    stand_in: Callable[[], Any], mistake: Callable[[Any], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        one_step(stand_in, mistake)


def test_the_metrics_of_a_batch_wait_for_no_value(stand_in: Callable[[], Any]) -> None:
    with stand_in():
        z_i, z_j = torch.empty(2, 8, 16, device=META)
        for metric in (contrastive_top1(z_i, z_j), alignment(z_i, z_j), uniformity(z_i)):
            assert (metric.device, metric.shape) == (META, ())
        with pytest.raises(DataDependentOutputException):  # once for a score of kNN: the number of classes
            weighted_knn(z_i, torch.zeros(8, dtype=torch.int64, device=META), z_j, 3)


def test_the_second_stage_trains_where_the_encoder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "represent", lambda *_: (torch.ones(4, 32), None))
    monkeypatch.setattr(classifier, "train_classifier", lambda trained, *_: trained)
    encoder = stepclr.build_encoder("test_resnet", "small-stride2", size=28).to(META)
    trained = classifier.linear_layer(encoder, images(), 1, resolve(PretrainConfig(**SETTINGS), images()))
    assert {parameter.device for parameter in trained.parameters()} == {META}


# Which GPU, and what it is told.


def test_the_gpu_of_a_rank_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is given "cuda" alone takes the first GPU, whichever one the process has chosen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert default_device() == torch.device("cuda", 3)


def test_a_rank_prepares_no_gpu_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[int]] = []

    @contextmanager
    def fork_rng(gpus: list[int]) -> Iterator[None]:
        kept.append(gpus)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    for name in ("cpu", "cuda:3"):
        monkeypatch.setattr("stepclr.device.default_device", lambda name=name: torch.device(name))
        with seeded(0):
            pass
    assert kept == [[], [3]]


@pytest.mark.parametrize("command", [embedding, table])
def test_a_rank_has_its_gpu_before_an_encoder_is_put_there(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(name: str, value: Any) -> Callable[[], Any]:
        def called() -> Any:
            order.append(name)
            return value

        return called

    monkeypatch.setattr(command, "join", noted("joined", ALONE))
    monkeypatch.setattr(command, "default_device", noted("device", torch.device("cpu")))
    run = untrained_run(tmp_path)
    if command is embedding:
        embedding.embed(run, images())
    else:
        table.write_embeddings(run, images(), tmp_path / "h.npz")
    assert order[:2] == ["joined", "device"]


def test_ranks_on_different_gpus_write_the_same_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "default_device", lambda: torch.device("cuda", 3))
    run = stepclr.pretrain(images(), tmp_path / "run", **SETTINGS, epochs=1, progress=False)
    assert run.config.device == "cuda"


@pytest.mark.parametrize("options", [{}, {"checkpoint_activations": True}])
def test_cudnn_chooses_its_fastest_algorithms_while_a_run_lasts(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(loop, "compiles", lambda _: False)
    decided = resolve(PretrainConfig(**SETTINGS | options), images())
    model = build_model(decided, images())
    with ExitStack() as stack:
        ready_to_train(stack, model, None, decided, torch.device("cuda"), ALONE)
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_numbers_of_the_host_go_by_the_gpu_where_the_group_has_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda _, mine: sent.append(mine))
    with FakeTensorMode():  # which knows a GPU's tensors without values
        gathered = World(0, 2).gather(torch.ones(2, 3), [2, 1])
    assert [mine.device.type for mine in sent] == ["cuda"]
    assert (gathered.device.type, gathered.shape) == ("cpu", (3, 3))


# Copies to a GPU.


class Stream:
    """A double of a CUDA stream: it notes what happens in which order."""

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened

    def record_event(self) -> str:
        self.happened.append("recorded")
        return "event"

    def wait_event(self, event: str) -> None:
        assert event == "event"
        self.happened.append("waited")


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was asked of torch.cuda by `upload`, with doubles that copy from the CPU to the CPU."""
    happened: list[str] = []
    stream = Stream(happened)

    @contextmanager
    def inside(entered: Stream) -> Iterator[None]:
        assert entered is stream
        happened.append("entered")
        yield
        happened.append("left")

    def pin_memory(flat: Tensor) -> Tensor:
        happened.append("pinned")
        return flat.clone()

    def record_stream(_: Tensor, used_by: Stream) -> None:
        assert used_by is stream
        happened.append("kept")

    gpu_cache._stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    yield happened
    gpu_cache._stream.cache_clear()


@pytest.mark.parametrize("alike", [True, False])
def test_a_copied_batch_is_waited_for_and_kept_until_it_was_used(happened: list[str], alike: bool) -> None:
    batch: Any = (
        images().read(range(4)) if alike else [image[:, : 9 + k] for k, image in enumerate(images().read([1, 2]))]
    )
    receive = upload(batch, torch.device("cpu"))
    assert happened == ["entered", "pinned", "recorded", "left"]
    arrived = receive()
    assert happened[4:] == ["waited", "kept"]
    for copied, image in zip(arrived, batch, strict=True):
        assert torch.equal(copied, image)
