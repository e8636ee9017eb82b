"""Policies by name and as lists of ops: their ops, their settings, and that views depend on their keys alone."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import call
from test_views import ImageBatch, cut, made_up, within

from stepclr import StepclrError, Views, open_images, view_keys
from stepclr.tools.sheet import policy_sheet
from stepclr.views import cuda
from stepclr.views import reference as renderer
from stepclr.views.geometry import HorizontalFlip, QuarterTurns, RandomErasing, Rotate, VerticalFlip
from stepclr.views.ops import (
    AutoAugment,
    Blur,
    ColorJitter,
    Equalize,
    Grayscale,
    Op,
    Posterize,
    RandAugment,
    Solarize,
    Warp,
)
from stepclr.views.policies import POLICIES, ListedOp, read_policy
from stepclr.views.reference import apply_op

Policy = str | Sequence[ListedOp]
OWN: list[Op] = [RandAugment(3, 20), Blur(0.7), AutoAugment("svhn"), Warp(0.8), Grayscale(0.5)]
ALL: dict[str, Policy] = {
    **{name: name for name in POLICIES if not name.startswith("domain:")},
    "document": "domain:document",
    "words": "Rotate(180)+VerticalFlip+Equalize(p=0.5)+QuarterTurns+posterize(p=0.5)+Solarize(p=0.5)+random-erasing",
    "cifar10": "autoaugment:cifar10",
    "svhn": "autoaugment:svhn",
    "five layers": "randaugment:5,30",
    "a list": OWN,
}
every_policy = pytest.mark.parametrize("policy", ALL.values(), ids=ALL)


def made(policy: Policy, size: int = 40, **settings: object) -> Views:
    """Views at full strength whatever the size, where the policy has these ops."""
    full = {"strength": 1.0, "blur": 0.5, "min_area": 0.08}
    missing = [name for name in ("strength", "blur", "warp") if read_policy(policy, size).value(name) is None]
    chosen = {name: value for name, value in {**full, **settings}.items() if name not in missing}
    return Views(policy, size, **chosen)  # type: ignore[arg-type]


# The views of a key, bit for bit.


@every_policy
@pytest.mark.parametrize("size", [33, 64])
def test_views_of_a_key_are_the_same_in_any_company(policy: Policy, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 16
    views, batch, keys = made(policy, size), made_up(n, 61, 70), view_keys(0, 0, range(n))
    x = views(batch, keys)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert torch.equal(views(batch[order], keys[order]), x[:, order])
    alone = [views(batch[k : k + 1], keys[k : k + 1]) for k in range(n)]
    assert torch.equal(torch.cat(alone, dim=1), x)
    larger = [made_up(1, 90, 33)[0], *batch[:3], made_up(1, 20, 200)[0]]
    assert torch.equal(views(larger, torch.cat([keys[-1:], keys[:3], keys[-1:]]))[:, 1:4], x[:, :3])
    monkeypatch.setattr(renderer, "CHUNK", 5 * 3 * size * size)
    assert torch.equal(views(batch, keys), x)


@pytest.mark.parametrize("policy", [ALL[name] for name in ("stacked", "cifar10", "a list")], ids=str)
def test_views_of_a_key_are_the_same_with_one_thread_or_two(policy: Policy) -> None:
    """Images of more than 32,768 numbers, so that torch shares out even one among threads."""
    views, batch, keys = made(policy, 112, views=1), made_up(3, 120, 130), view_keys(0, 1, range(3))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        x = views(batch, keys)
        torch.set_num_threads(2)
        assert torch.equal(views(batch, keys), x)
        assert torch.equal(views(batch[2:], keys[2:])[:, 0], x[:, 2])
    finally:
        torch.set_num_threads(threads)


@every_policy
def test_autocast_and_default_types_around_views_change_nothing(policy: Policy) -> None:
    views, batch, keys = made(policy), made_up(8, 50, 50), view_keys(0, 0, range(8))
    x = views(batch, keys)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views(batch, keys), x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(views(batch, keys), x)
    finally:
        torch.set_default_dtype(torch.float32)


@every_policy
def test_more_views_leave_the_first_ones_as_they_are(policy: Policy) -> None:
    batch, keys = made_up(6, 50, 40), view_keys(0, 0, range(6))
    x = made(policy, views=4)(batch, keys)
    assert torch.equal(made(policy)(batch, keys), x[:2])
    assert x.flatten(1).unique(dim=0).shape[0] == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_policy
def test_a_gpu_renders_the_same_views(policy: Policy) -> None:
    views, batch, keys = made(policy), made_up(12, 61, 70), view_keys(0, 0, range(12))
    apart = (views(batch.cuda(), keys).cpu() - views(batch, keys)).abs()
    assert (apart > 2.01 / 255).float().mean() < 0.01


@every_policy
@pytest.mark.parametrize("size", [4, 32])
def test_tiny_and_elongated_images_give_proper_views(policy: Policy, size: int) -> None:
    images = [*cut(made_up(8, 60, 60)), made_up(1, 1, 1)[0], made_up(1, 300, 3)[0]]
    x = made(policy, size)(images, view_keys(0, 0, range(10)))
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert x.min() >= 0
    assert x.max() <= 1 + 1e-6


# What the policies are.


def test_each_policy_has_its_ops_in_its_order() -> None:
    jitter, gray, blur, warp = ColorJitter(1.0, 0.8), Grayscale(0.2), Blur(0.5), Warp(0.5)
    assert {name: read_policy(name, 224).ops for name in POLICIES} == {
        "simclr": (jitter, gray, blur),
        "simaugment": (jitter, gray, warp, blur),
        "autoaugment": (AutoAugment("imagenet"),),
        "randaugment": (RandAugment(2, 9),),
        "stacked": (jitter, RandAugment(2, 30), gray, warp, blur),
        "crop": (),
        "domain:aerial": (VerticalFlip(), jitter, gray, blur),
        "domain:microscopy": (VerticalFlip(), jitter, Blur(0.0), QuarterTurns(0.75)),
        "domain:xray": (Rotate(10.0, p=1.0),),
        "domain:document": (ColorJitter(0.5), gray, blur, Solarize(0.5, p=0.1)),
    }
    assert {name: read_policy(name).flip for name in POLICIES if read_policy(name).flip != 0.5} == {
        "domain:document": 0
    }
    assert read_policy("autoaugment:svhn").ops == (AutoAugment("svhn"),)
    assert read_policy("randaugment:3, 0").ops == (RandAugment(3, 0),)
    assert read_policy("simclr", 32).ops == (ColorJitter(0.5), gray, Blur(0.0))


def test_a_list_of_ops_is_the_policy_of_these_ops() -> None:
    batch, keys = made_up(8, 50, 50), view_keys(0, 0, range(8))
    for name in POLICIES:
        policy = read_policy(name, 96)
        ops = [*policy.ops, HorizontalFlip(policy.flip)]
        own = Views(ops, 96, min_area=policy.min_area, interpolation=policy.interpolation)
        assert torch.equal(own(batch, keys), Views(name, 96)(batch, keys))
    assert torch.equal(Views([], 96)(batch, keys), Views("crop", 96)(batch, keys))
    assert (
        Views([Grayscale(), Warp(0.2)], 32).describe() == "Grayscale(p=0.2)+Warp(p=0.2) 32 px: warp 0.2, min_area 0.2"
    )
    backwards = Views([Blur(1.0), Grayscale(), ColorJitter()], 96)(batch, keys)
    assert not torch.equal(backwards, Views([ColorJitter(), Grayscale(), Blur(1.0)], 96)(batch, keys))


def test_every_op_comes_after_the_same_crop_and_takes_its_own_numbers_in_turn() -> None:
    batch, keys = made_up(2000, 20, 20), view_keys(0, 0, range(2000))
    first = {name: made(name).sample_params(batch, keys)[1] for name in POLICIES}
    for name, draws in first.items():
        assert np.array_equal(draws.box, first["crop"].box), name
        assert np.array_equal(draws.flip, first["crop"].flip & (name != "domain:document")), name
    for name in ("simaugment", "stacked"):
        jitter, other = first["simclr"].ops[0], first[name].ops[0]
        assert all(np.array_equal(getattr(jitter, field), getattr(other, field)) for field in vars(jitter))
    two = Views([Grayscale(0.5), Grayscale(0.5)], 32).sample_params(batch, keys)[0].ops
    both = vars(two[0])["gray"] & vars(two[1])["gray"]
    assert within(both.sum(), 2000, 0.25)


def test_simaugment_without_its_warp_is_simclr_on_bilinear_crops() -> None:
    batch, keys = made_up(8, 50, 50), view_keys(0, 0, range(8))
    one = Views("simaugment", 64, blur=0.0, warp=0.0)(batch, keys)
    assert torch.equal(one, Views("simclr", 64, blur=0.0, interpolation="bilinear")(batch, keys))
    assert not torch.equal(one, Views("simaugment", 64, blur=0.0, warp=1.0)(batch, keys))


@pytest.mark.parametrize("policy", POLICIES)
def test_simaugment_alone_crops_bilinearly_unless_asked(policy: str) -> None:
    assert Views(policy, 32).interpolation == ("bilinear" if policy == "simaugment" else "bicubic")
    assert Views(policy, 32, interpolation="bicubic").interpolation == "bicubic"
    assert Views(policy, 32, interpolation="bilinear").interpolation == "bilinear"


# Options.

USED = {
    "simclr": {"strength", "blur"},
    "simaugment": {"strength", "blur", "warp"},
    "autoaugment": set(),
    "randaugment": set(),
    "stacked": {"strength", "blur", "warp"},
    "crop": set(),
    "domain:aerial": {"strength", "blur"},
    "domain:microscopy": {"strength", "blur"},
    "domain:xray": set(),
    "domain:document": {"strength", "blur"},
}


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("policy", USED)
def test_an_option_is_used_or_refused(policy: str, size: int) -> None:
    expected = {"warp": 0.5, **read_policy("simclr", size).defaults()}
    defaults = read_policy(policy, size).defaults()
    assert set(defaults) == {*USED[policy], "min_area"}
    if not policy.startswith("domain:"):
        assert defaults == {name: expected[name] for name in defaults}
    batch, keys = made_up(12, 50, 50), view_keys(0, 0, range(12))
    plain = Views(policy, size)
    for name in ("strength", "blur", "warp", "min_area"):
        assert getattr(plain, name) == defaults.get(name)
        if name in {*USED[policy], "min_area"}:
            changed = Views(policy, size, **{name: 0.9})  # type: ignore[arg-type]
            assert getattr(changed, name) == 0.9
            assert not torch.equal(changed(batch, keys), plain(batch, keys))
        else:
            with pytest.raises(StepclrError, match=f"{policy} does not use {name}") as error:
                Views(policy, size, **{name: 0.9})  # type: ignore[arg-type]
            users = str(error.value).split(": ")[1].split(", ")
            assert users == [other for other, used in USED.items() if name in used]


def test_options_change_the_ops_of_a_list() -> None:
    views = Views([ColorJitter(0.3), Blur(0.1), Blur(0.2)], 32)
    assert (views.strength, views.blur, views.warp) == (0.3, 0.1, None)
    assert views.ops == [(ColorJitter(0.3), Blur(0.1), Blur(0.2))] * 2
    views = Views([ColorJitter(0.3, p=1.0), Warp()], 32, strength=0.7, warp=0.9)
    assert views.ops == [(ColorJitter(0.7, p=1.0), Warp(0.9))] * 2


@pytest.mark.parametrize("policy", ["simclr", "simaugment", "stacked"])
def test_each_view_may_have_its_own_strength(policy: str) -> None:
    batch, keys = made_up(8, 50, 50), view_keys(0, 0, range(8))
    mixed = Views(policy, 48, strength=(0.2, 1.0))
    assert mixed.strength == (0.2, 1.0)
    weak, strong = (Views(policy, 48, strength=strength)(batch, keys) for strength in (0.2, 1.0))
    assert torch.equal(mixed(batch, keys), torch.stack([weak[0], strong[1]]))
    assert not torch.equal(weak, strong)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (lambda: Views("simclr", 96), "simclr 96 px: strength 1, blur 0.5, min_area 0.08"),
        (lambda: Views("simaugment", 96), "simaugment 96 px: strength 1, blur 0.5, warp 0.5, min_area 0.08"),
        (lambda: Views("autoaugment:svhn", 32), "autoaugment:svhn 32 px: min_area 0.2"),
        (lambda: Views("simclr", 32, strength=[1.0, 0.5]), "simclr 32 px: strength 1 / 0.5, blur 0, min_area 0.2"),
    ],
)
def test_views_describe_themselves_in_a_line(views: Callable[[], Views], expected: str) -> None:
    assert views().describe() == expected


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("policy", "settings", "words"),
    [
        ("simaugmnet", {}, "Did you mean 'simaugment'"),
        ("randaugmet:2,9", {}, "unknown policy 'randaugmet:2,9'. Did you mean 'randaugment'"),
        ("domain:areal", {}, "unknown policy 'domain:areal'. Did you mean 'domain:aerial'"),
        ("domain", {}, "unknown policy 'domain'. Did you mean 'domain:"),
        ("simclr+VertcalFlip", {}, "Did you mean 'VerticalFlip'"),
        ("simclr+", {}, "unknown policy ''"),
        ("Rotat(15)", {}, "unknown op 'Rotat'. Did you mean 'Rotate'"),
        ("simclr+Rotate(angle=15)", {}, r"not an op; write it as Rotate\(degrees=15.0, p=0.5\)"),
        ("Rotate(15) or (1)", {}, "not an op; write it as Rotate"),
        ("Rotate(15, 1, 1)", {}, "not an op; write it as Rotate"),
        ("Rotate(degrees='far')", {}, "degrees of Rotate must be a number, not 'far'"),
        ("simclr+Rotate(200)", {}, "degrees of Rotate must lie between 0 and 180, not 200"),
        ("simclr(2)", {}, "unknown op 'simclr'"),
        ("all", {}, "unknown policy 'all'"),
        ("autoaugment:cifar", {}, "Did you mean 'cifar10'"),
        ("autoaugment:", {}, "unknown autoaugment table ''"),
        ("randaugment:2", {}, "two whole numbers, .* not '2'"),
        ("randaugment:2,9,1", {}, "two whole numbers"),
        ("randaugment:two,9", {}, "two whole numbers"),
        ("RandAugment(1.5)", {}, "layers of RandAugment must be a whole number, not 1.5"),
        ("Posterize(4.0)", {}, "bits of Posterize must be a whole number, not 4.0"),
        ("randaugment:0,9", {}, "layers of RandAugment must lie between 1 and 20, not 0"),
        ("randaugment:2,31", {}, "magnitude of RandAugment must lie between 0 and 30, not 31"),
        ("simclr:2", {}, "takes nothing after its name, not ':2'"),
        (["simclr"], {}, "'simclr' is not an op"),
        ([Warp(), Warp(), Warp(), Warp(), Grayscale(), Grayscale()], {}, "65 random numbers for a view; there are 64"),
        ("simaugment", {"warp": 1.1}, "warp must lie between"),
        ("simclr", {"strength": (1.0, 0.5, 0.2)}, "3 values for 2 views"),
        ("simclr", {"strength": (1.0, 9.0)}, "strength must lie between"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_line(policy: Policy, settings: dict[str, object], words: str) -> None:
    with pytest.raises(StepclrError, match=words) as error:
        Views(policy, 32, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_ops_may_take_all_64_numbers() -> None:
    x = Views([Warp(), Warp(), Warp(), Warp(), Grayscale()], 32, views=3)(made_up(2, 40, 40), view_keys(0, 0, range(2)))
    assert x.isfinite().all()


@pytest.mark.parametrize("op", [ColorJitter, Grayscale, Blur, Warp])
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probabilities_of_an_op_lie_between_0_and_1(op: type[Blur], p: float) -> None:
    with pytest.raises(StepclrError, match="must lie between 0 and 1"):
        op(p=p)


# The sheet of all policies.


@pytest.mark.parametrize("size", [32, 100])
def test_a_policy_sheet_has_a_column_a_policy_under_its_name(size: int) -> None:
    batch: ImageBatch = [made_up(1, 40, 20)[0], made_up(1, 80, 80)[0]]
    policies = [Views(name, size) for name in POLICIES]
    image = policy_sheet(batch, policies, seed=4)
    times = 3 if size == 32 else 1
    columns = 1 + len(POLICIES)
    assert image.size == (times * (columns * (size + 2) + 2), 16 + times * (2 * (size + 2) + 2))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    keys = view_keys(4, 0, range(2))
    cells = pixels[:, 16::times, ::times]
    for column, views in enumerate(policies):
        left = times * (2 + (column + 1) * (size + 2))
        assert (pixels[:, :16, left : left + times * size] < 0.5).any(), "no name"
        for row, x in enumerate(views(batch, keys)[0]):
            cell = cells[:, 2 + row * (size + 2) :, 2 + (column + 1) * (size + 2) :][:, :size, :size]
            torch.testing.assert_close(cell, x, rtol=0, atol=1.01 / 255)


def test_all_policies_are_those_that_the_images_can_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "four.npy", np.zeros((20, 20, 4), np.uint8))
    words = ("--channels", 4, "--size", 16, "--policy", "all", "--out", tmp_path / "views.png")
    assert call("views", tmp_path / "four.npy", *words) == 0
    drawn = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " px: " in line}
    assert drawn == set(POLICIES) - {"autoaugment", "randaugment", "stacked"}


def test_the_command_views_draws_all_policies_or_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "views.png"
    plain = ("views", "sample:train", "--out", out, "--rows", 2, "--size", 48)
    assert call(*plain, "--policy", "all", "--warp", "0.2", "--strength", "0.9") == 0
    with Image.open(out) as sheet:
        assert sheet.size == (2 * ((1 + len(POLICIES)) * 50 + 2), 16 + 2 * (2 * 50 + 2))
    said = capsys.readouterr().out
    for line in (
        "simclr 48 px: strength 0.9, blur 0.5, min_area 0.08",
        "stacked 48 px: strength 0.9, blur 0.5, warp 0.2, min_area 0.08",
        "crop 48 px: min_area 0.08",
        "domain:document 48 px: strength 0.9, blur 0.5, min_area 0.5, flip 0",
    ):
        assert line in said
    assert call(*plain, "--policy", "stacked", "--views", 3, "--pairs", 1, "--strength", "1,0.5,0") == 0
    with Image.open(out) as sheet:
        assert sheet.size == (4 * 50 + 2, 2 * 50 + 2)
    assert "stacked 48 px: strength 1 / 0.5 / 0, blur 0.5, warp 0.5, min_area 0.08" in capsys.readouterr().out
    for option in ("--rows", "--pairs"):
        assert call(*plain, option, 0) == 2
        assert f"{option[2:]} must be at least 1, not 0" in capsys.readouterr().err
    assert call(*plain, "--policy", "simclr", "--warp", "0.5") == 2
    assert "does not use warp; these do: simaugment, stacked" in capsys.readouterr().err
    assert call(*plain, "--policy", "simclr+vertical-flip+rotate(30)") == 0
    assert "simclr+vertical-flip+rotate(30) 48 px: strength 1, blur 0.5" in capsys.readouterr().out
    assert call(*plain, "--policy", "simclr+vertical-flop") == 2
    assert "Did you mean 'VerticalFlip'" in capsys.readouterr().err
    assert call(*plain, "--strength", "1,x") == 2


def test_a_list_of_ops_has_a_name_that_says_all_of_it() -> None:
    """config.json and the command line know a list by its name."""
    lists: list[list[Op]] = [
        [ColorJitter(0.4), Grayscale(), Blur(0.3)],
        [AutoAugment("svhn")],
        [RandAugment(1, 4), Warp(p=0.25)],
    ]
    for ops in lists:
        assert read_policy(read_policy(ops).name).ops == tuple(ops)
        images = open_images("sample:test", limit=6).read(range(6))
        keys = view_keys(0, 0, range(6))
        assert torch.equal(Views(read_policy(ops).name, 28)(images, keys), Views(ops, 28)(images, keys))
    assert read_policy([]).name == "crop"
    assert read_policy("Grey(p=0.3)+Blur()").ops == (Grayscale(0.3), Blur())  # the name in older commands and files
    for text, message in (
        ("Grayscal(p=0.2)", "Did you mean 'Grayscale'"),
        ("Grayscale(q=0.2)", "is not an op; write it as Grayscale(p=0.2)"),
        ("Grayscale(p=__import__('os'))", "is not an op"),
        ("Grayscale(p=7.0)", "p of Grayscale must lie between"),
    ):
        with pytest.raises(StepclrError, match=re.escape(message)):
            read_policy(text)


def test_words_name_policies_and_ops_in_any_spelling_with_or_without_values() -> None:
    turns = (VerticalFlip(), QuarterTurns(), Rotate(30.0, p=1.0))
    for words in (
        "simclr+VerticalFlip+QuarterTurns+Rotate(degrees=30, p=1.0)",
        "simclr + vertical-flip + quarter_turns + rotate(30, 1)",
    ):
        assert read_policy(words).ops == (*read_policy("simclr").ops, *turns)
    assert read_policy("SimCLR") == read_policy("simclr")
    assert read_policy("Domain:XRay+Blur").ops == (*read_policy("domain:xray").ops, Blur())
    assert read_policy("vertical-flip").ops == (VerticalFlip(),)
    assert read_policy("gray+grey(0.5)").ops == (Grayscale(), Grayscale(0.5))
    assert read_policy("domain:xray+randaugment:3,4").ops == (Rotate(10.0, p=1.0), RandAugment(3, 4))
    erase: list[Op] = [Equalize(), Posterize(bits=3), RandomErasing(0.2)]
    assert read_policy(read_policy(erase).name).ops == tuple(erase)


def test_a_list_has_the_crop_of_the_first_policy_in_it_and_the_flip_that_it_names() -> None:
    assert read_policy("simaugment+VerticalFlip").interpolation == "bilinear"
    assert read_policy("domain:xray+simaugment").interpolation == "bicubic"
    assert read_policy("Blur+domain:xray+simclr").min_area == 0.8
    assert read_policy("domain:document+VerticalFlip").flip == 0
    assert read_policy("simclr+HorizontalFlip(0.3)").flip == 0.3
    assert read_policy("domain:document+HorizontalFlip").flip == 0.5
    assert read_policy("simclr+HorizontalFlip(0)").ops == read_policy("simclr").ops
    assert read_policy("VerticalFlip", 32).min_area == 0.2


def test_settings_are_for_the_ops_of_named_policies() -> None:
    """An op that is written out keeps its own values in a run that says nothing of them."""
    assert read_policy("simclr+VerticalFlip", 32).defaults() == {"strength": 0.5, "blur": 0.0, "min_area": 0.2}
    assert read_policy("simclr+Blur(p=0.3)").defaults() == {"strength": 1.0, "min_area": 0.08}
    assert read_policy("ColorJitter(strength=0.3)+Warp").defaults() == {"min_area": 0.08}
    assert Views("simclr+VerticalFlip", strength=0.7).ops[0][0] == ColorJitter(0.7)


@pytest.mark.parametrize("channels", [1, 5])
def test_the_ops_without_colors_treat_every_channel_alike(channels: int) -> None:
    """By the reference and on a GPU, an image of any number of channels is that many images of one."""
    words = "VerticalFlip+QuarterTurns+Rotate(p=1)+Solarize(p=1)+Posterize(6,p=1)+Equalize(p=1)+RandomErasing"
    x = made_up(channels, 24, 24)[:, 0].float().repeat(4, 1, 1, 1) / 255
    batch = made_up(4, 24, 24)
    (draws,) = Views(words, 24, views=1, renderer="torch").sample_params(batch, view_keys(0, 0, range(4)))
    alone = x.flatten(0, 1)[:, None].clone()
    for op in draws.ops:
        apply_op(x, op)
        apply_op(alone, replace(op, **{name: value.repeat(channels, axis=0) for name, value in vars(op).items()}))
        numbers = [torch.from_numpy(value.reshape(4, -1)).double() for value in vars(op).values()]
        assert cuda.OPS[type(op)](x, *numbers).shape == x.shape
    assert torch.equal(x.flatten(0, 1)[:, None], alone)
