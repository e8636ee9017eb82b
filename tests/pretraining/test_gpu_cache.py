"""The feed with images kept on, or copied ahead to, a device: the same batches as without; on a GPU, nobody waits."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import stepclr
from stepclr.data.images import ImageBatch, ImageSet
from stepclr.model.features import represent
from stepclr.pretraining import batches as batching
from stepclr.pretraining import gpu_cache
from stepclr.pretraining.batches import Batch, batches
from stepclr.pretraining.gpu_cache import Resident, joined, on_device, parted, room, upload

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICES = [
    CPU,
    pytest.param(CUDA, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device to copy to")
N = 50
ROOM = 10**8  # bytes


def images_of(channels: int) -> NDArray[np.uint8]:
    """The sample's real images, grey or as three channels that differ."""
    grey = stepclr.open_images("sample:train", limit=N).read(range(N))
    assert isinstance(grey, Tensor)
    shifted = [grey[:, 0].roll(k, 1) for k in range(channels)]
    return torch.stack(shifted, 1).numpy()


def labeled(channels: int = 3) -> ImageSet:
    return stepclr.open_images((images_of(channels), np.arange(N) % 7 - 1))


def same(these: Iterator[Batch], those: Iterator[Batch]) -> bool:
    """Whether two feeds hand out the same images at the same places, and more than nothing."""
    left, right = list(these), list(those)
    return len(left) == len(right) > 0 and all(
        equal(a.images, b.images) and a.labels.tolist() == b.labels.tolist() and np.array_equal(a.samples, b.samples)
        for a, b in zip(left, right, strict=True)
    )


def equal(a: ImageBatch, b: ImageBatch) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a.cpu(), b.cpu())
    return len(a) == len(b) and all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))


# Resident: all images on the device.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("start", [0, 2])
def test_a_resident_set_hands_out_the_same_batches(
    device: torch.device, channels: int, balanced: bool, start: int
) -> None:
    images = labeled(channels)
    there = on_device(images, device, ROOM)
    assert isinstance(there.store, Resident)
    ours = list(batches(there, 3, 1, 8, start, balanced, device))
    assert same(iter(ours), batches(images, 3, 1, 8, start, balanced))
    assert all(isinstance(batch.images, Tensor) and batch.images.device.type == device.type for batch in ours)
    assert not same(batches(there, 3, 1, 8, start, balanced), batches(images, 3, 2, 8, start, balanced))


def test_part_of_a_set_in_another_order_is_resident_too() -> None:
    part = labeled().take([40, 3, 3, 17, 9])
    there = on_device(part, CPU, ROOM)
    assert isinstance(there.store, Resident)
    assert len(there.store.pixels) == 5  # and no more is copied
    assert equal(there.read([4, 0, 2]), part.read([4, 0, 2]))
    assert (there.names, there.labels.tolist()) == (part.names, part.labels.tolist())
    assert np.array_equal(there.sizes(), part.sizes())
    assert equal(there.take([3, 1]).read([0, 1]), part.read([3, 1]))


def test_it_is_uploaded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cache, "CHUNK", 3 * 28 * 28 * 7 + 5)
    images = labeled()
    assert equal(on_device(images, CPU, ROOM).read(range(N)), images.read(range(N)))


def test_there_must_be_room_to_the_byte() -> None:
    images = labeled()
    assert isinstance(on_device(images, CPU, N * 3 * 28 * 28).store, Resident)
    assert on_device(images, CPU, N * 3 * 28 * 28 - 1) is images


def test_on_a_cpu_images_stay_where_they_are() -> None:
    images = labeled()
    assert on_device(images, CPU) is images


def test_a_share_of_the_free_memory_is_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**10, 10**11))
    assert room(CUDA) == 3 * 10**9
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 7 * 10**9)  # of a trial, and most of it free
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * 10**9)
    assert room(CUDA) == 4.5 * 10**9
    assert room(CPU) == 0


def write(folder: Path, sizes: list[tuple[int, int]]) -> ImageSet:
    for k, size in enumerate(sizes):
        image = Image.fromarray(images_of(3)[k].transpose(1, 2, 0)).resize(size)
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{k:02d}.png")
    return stepclr.open_images(folder)


def test_what_is_decoded_each_time_or_unequal_or_reduced_when_read_is_not_resident(tmp_path: Path) -> None:
    files = write(tmp_path / "equal", [(20, 20)] * 6)
    unequal = write(tmp_path / "unequal", [(20, 20), (20, 30), (20, 20)])
    reduced = labeled().decoded(14, budget=1)
    assert reduced.short_side == 14
    for images in (files, unequal, unequal.decoded(8), reduced):
        assert on_device(images, CPU, ROOM) is images
    assert isinstance(on_device(files.decoded(20), CPU, ROOM).store, Resident)


def test_a_resident_set_stays_so_when_it_is_decoded_or_put_there_again() -> None:
    there = on_device(labeled(), CPU, ROOM)
    assert there.decoded(56) is there
    assert on_device(there, CPU, ROOM) is there


def test_features_and_a_whole_run_of_a_resident_set_are_bit_for_bit_the_same(tmp_path: Path) -> None:
    images = labeled()
    settings: dict[str, Any] = {
        "encoder": "test_resnet",
        "stem": "small-stride2",
        "epochs": 2,
        "batch_size": 16,
        "progress": False,
    }
    plain = stepclr.pretrain(images, tmp_path / "plain", **settings).encoder()
    there = stepclr.pretrain(on_device(images, CPU, ROOM), tmp_path / "there", **settings).encoder()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, there.state_dict()[name]), name
    h, kept = represent(plain, images)
    same_h, same_kept = represent(plain, on_device(images, CPU, ROOM))
    assert torch.equal(h, same_h)
    assert np.array_equal(kept, same_kept)


# Copied ahead: a batch at a time.


def test_what_is_joined_for_one_copy_is_parted_without_another() -> None:
    batch = torch.from_numpy(images_of(3))
    flat, shapes = joined(batch)
    whole = parted(flat, shapes, True)
    assert isinstance(whole, Tensor)
    assert torch.equal(whole, batch)
    images = [batch[k, :, : 5 + k, : 9 - k] for k in range(5)]
    flat, shapes = joined(images)
    assert flat.numel() == sum(image.numel() for image in images)
    back = parted(flat, shapes, False)
    assert equal(back, images)
    assert back[0].data_ptr() == flat.data_ptr()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What happened to batches, in which thread, with a stand-in for the copy to a GPU."""
    happened: list[tuple[str, str]] = []

    def stand_in(images: ImageBatch, device: torch.device) -> Callable[[], ImageBatch]:
        assert device == CUDA
        flat, shapes = joined(images)
        happened.append(("sent", threading.current_thread().name))

        def receive() -> ImageBatch:
            happened.append(("received", threading.current_thread().name))
            return parted(flat, shapes, isinstance(images, Tensor))

        return receive

    monkeypatch.setattr(batching, "upload", stand_in)
    monkeypatch.setattr(batching, "to_device", lambda array, _: torch.from_numpy(array))  # of the labels
    return happened


def broken(folder: Path) -> ImageSet:
    """Images of unequal sizes of which one cannot be read."""
    images = write(folder, [(20, 20 + k % 3) for k in range(12)])
    (folder / "05.png").write_bytes(b"no image")
    return images


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("start", [0, 1])
def test_batches_copied_ahead_are_the_same(copies: list[tuple[str, str]], balanced: bool, start: int) -> None:
    images = labeled()
    assert same(batches(images, 3, 1, 8, start, balanced, CUDA), batches(images, 3, 1, 8, start, balanced))
    assert len(copies) == 2 * (6 - start)


def test_unequal_and_unreadable_images_go_the_same_way(copies: list[tuple[str, str]], tmp_path: Path) -> None:
    plain, sent = broken(tmp_path / "plain"), broken(tmp_path / "sent")
    assert same(batches(sent, 0, 0, 4, 0, device=CUDA), batches(plain, 0, 0, 4, 0))
    assert [name for name, _ in sent.skipped] == [name for name, _ in plain.skipped] == ["05.png"]
    assert copies


def test_the_next_batch_is_on_its_way_while_one_is_worked_on(copies: list[tuple[str, str]]) -> None:
    going = batches(labeled(), 0, 0, 8, 0, device=CUDA)
    next(going)
    next(going)  # this one was sent before; the third is sent now, and nobody asks for it
    until = time.monotonic() + 20
    while len(copies) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    assert [what for what, _ in copies].count("sent") == 3
    threads = {what: thread.split("_")[0] for what, thread in copies}
    assert threads == {"sent": "stepclr-ahead", "received": "MainThread"}


def test_to_a_cpu_nothing_is_copied(copies: list[tuple[str, str]]) -> None:
    images = labeled()
    assert same(batches(images, 0, 0, 8, 0, device=CPU), batches(images, 0, 0, 8, 0))
    assert not copies


# On a GPU.


@pytest.fixture
def nobody_waits() -> Iterator[None]:
    """An error for whatever makes the host wait for the GPU."""
    torch.cuda.init()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.usefixtures("nobody_waits")
def test_neither_a_resident_batch_nor_its_views_make_the_host_wait() -> None:
    with pytest.raises(RuntimeError):
        torch.ones(3, device="cuda").nonzero()  # the guard is on
    torch.cuda.set_sync_debug_mode("default")
    there = on_device(labeled(), CUDA)
    torch.cuda.set_sync_debug_mode("error")
    views = stepclr.Views("simclr", 28, strength=1.0, blur=0.5)
    for batch in batches(there, 0, 0, 8, 0, device=CUDA):
        x = views(batch.images, stepclr.view_keys(0, 0, batch.samples))
    assert x.shape == (2, 8, 3, 28, 28)


@needs_cuda
def test_a_copied_batch_is_whole_when_it_is_used_though_nobody_waited() -> None:
    size = (64, 3, 224, 224)
    for k in range(20):
        images = torch.full(size, k, dtype=torch.uint8)
        receive = upload(images, CUDA)
        torch.cuda._sleep(1_000_000)
        arrived = receive()
        assert isinstance(arrived, Tensor)
        assert bool((arrived == k).all())
