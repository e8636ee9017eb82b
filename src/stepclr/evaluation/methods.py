"""The methods of the table: each predicts the classes of the test images from one label split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stepclr.data.images import ImageSet
from stepclr.data.reading import Reading
from stepclr.device import Each, side_by_side
from stepclr.distributed import World
from stepclr.evaluation import baselines
from stepclr.evaluation.baselines import START
from stepclr.evaluation.finetune import MIN_STEPS, FinetuneSettings, finetuned
from stepclr.evaluation.init_from import InitialWeights
from stepclr.evaluation.linear import linear_evaluation
from stepclr.evaluation.prepare import PreparedImages, all_logits, features, unreduced
from stepclr.evaluation.results import Fit, ranking
from stepclr.evaluation.splits import Split, mix_seed
from stepclr.metrics import knn_votes
from stepclr.model.build import OWN_MODULE
from stepclr.model.encoder import SMALL, Encoder
from stepclr.model.features import resized
from stepclr.model.files import state_checksum
from stepclr.model.timm_weights import timm_name
from stepclr.pretraining.batches import steps_per_epoch
from stepclr.pretraining.classifier import AfterStep, Supervised, crop_words, train_classifier
from stepclr.pretraining.optim import MOMENTUM, scaled_lr
from stepclr.threads import Progress, silent

SGD_EPOCHS, SGD_BATCH, SGD_RATE = 90, 256, 0.1  # SimCLR App. B.6; the rate is that at batch 256
LARGE, FEW_CORES = 2**22, 2  # numbers in h; cores
Features = tuple[NDArray[np.float32], NDArray[np.float32]]  # of train, of test


@dataclass(frozen=True, eq=False)
class Task:
    """What a method needs: the frozen encoder, the prepared images, and the settings of the training ones.

    `others` are further encoders to evaluate, each with its own preprocessing, by the name of their row.
    """

    encoder: Encoder
    others: dict[str, Encoder]
    images: PreparedImages
    seed: int
    scratch_steps: int
    knn_k: int
    knn_temperature: float
    min_area: float
    bf16: bool
    flip: float
    counted: Callable[[str], Progress] = lambda _: silent
    """Makes a `Progress` for images that are represented for the method of this name."""
    training: Callable[[str, int], AfterStep] = lambda *_: silent
    """Makes what is called after each step of a training, in its thread: for the method's name and the batch's size."""


@dataclass(frozen=True, eq=False)
class Method:
    """How a method predicts, and what the protocol says of it.

    predict: fits on a label split and predicts; or returns a function that does, to run in another thread beside the
    next `predict`. chooses: the name of what it decides from the split alone. decide: where given, it is called with
    all splits before the first is predicted, and decides for all splits with the same number of labels on the first of
    them. each: how to go through the splits, `map` or `side_by_side`.
    """

    predict: Callable[[Split], Fit | Callable[[], Fit]]
    chooses: str
    settings: dict[str, Any]
    decide: Callable[[Sequence[Split]], object] | None = None
    each: Each = map


def _pixels(task: Task) -> Method:
    h = _features(task, "pixels", baselines.pixels(task.encoder), task.images.train, task.images.test)
    return _linear(task, lambda _: h, baselines.PIXELS)


def _random(task: Task) -> Method:
    train = task.images.train

    # The splits with one number follow each other and share an initialization.
    @lru_cache(maxsize=1)
    def features_of(number: int) -> Features:
        encoder = baselines.random_encoder(task.encoder, mix_seed(task.seed, number))
        baselines.set_batchnorm_statistics(encoder, train)
        task.counted("random")(baselines.STATISTICS_IMAGES, baselines.STATISTICS_IMAGES)
        # Most of train is in no other split than that of all labels, so that h of it would not be used.
        used = np.unique(np.concatenate([split.indices for split in task.images.splits if split.number == number]))
        h = np.full((len(train), encoder.num_features), np.nan, np.float32)
        h[used], h_test = _features(task, "random", encoder, train.take(used), task.images.test)
        return h, h_test

    return _linear(task, features_of, baselines.RANDOM)


def _scratch(task: Task) -> Method:
    images = task.images
    given = task.encoder, images.train, images.test, task.scratch_steps, task.min_area, task.bf16
    scratch = baselines.Scratch(
        *given,
        flip=task.flip,
        each=_each(task),
        training=partial(task.training, "scratch"),
        scoring=partial(task.counted, "scratch"),
    )
    return Method(scratch, "rate", scratch.describe(), scratch.decide, scratch.each)


def _simclr(task: Task) -> Method:
    return _linear(task, lambda _: (task.images.h, task.images.h_test), "the run's encoder, frozen")


def _other(name: str, task: Task) -> Method:
    encoder = task.others[name]
    h = task.images.h, task.images.h_test
    if encoder is not task.encoder:
        # From the images as they are in their source: this encoder may take larger ones than the run's, and of another
        # range of values. The run's own range is for those that have none.
        images = task.images
        train, test = unreduced(images.train, images.opened[0]), unreduced(images.test, images.opened[1])
        value_range = train.value_range or encoder.value_range or task.encoder.value_range
        reading = Reading(value_range, channels=encoder.channels)
        train, test = train.read_as(reading), test.read_as(reading)
        h = _features(task, name, encoder, resized(train, encoder), resized(test, encoder))
    what = "the encoder as training began" if name == START else name
    if timm_name(name) is not None:
        what = encoder.weights  # with its tag
    method = _linear(task, lambda _: h, f"{what}, frozen")
    mean, std = (", ".join(f"{value:.4g}" for value in buffer.flatten()) for buffer in (encoder.mean, encoder.std))
    return replace(
        method,
        settings={
            **method.settings,
            "encoder": {"name": encoder.name, "stem": encoder.stem, "size": encoder.size},
            "preprocessing": f"{encoder.resizing}; mean {mean}; std {std}",
            "encoder_sha256": state_checksum(encoder.state_dict()),
        },
    )


def sgd_length(n: int) -> tuple[int, int]:
    """The steps of linear evaluation by SGD on n labels, and the images of each."""
    batch = min(SGD_BATCH, n)
    return max(SGD_EPOCHS * steps_per_epoch(n, batch), MIN_STEPS), batch


def _sgd(task: Task) -> Method:
    images = task.images

    def training(n: int) -> Supervised:
        steps, batch = sgd_length(n)
        rate = scaled_lr(SGD_RATE, batch, "linear")
        return Supervised(steps, batch, rate, task.min_area, task.bf16, freeze=True, flip=task.flip)

    def predict(split: Split) -> Fit:
        classifier = InitialWeights(task.encoder).classifier(images.train.classes, split.seed)
        settings = training(len(split.indices))
        after_step = task.training("sgd", settings.batch_size)
        train_classifier(classifier, images.train.take(split.indices), settings, split.seed, after_step)
        return Fit(ranking(all_logits(classifier, images.test, task.counted("sgd")).numpy()), settings.steps)

    settings = {
        "linear evaluation of": "the run's encoder, frozen",
        "by": "SGD on one view per image and epoch (SimCLR App. B.6)",
        "views": crop_words(task.min_area, task.flip),
        "epochs": f"{SGD_EPOCHS}, and at least {MIN_STEPS} steps",
        "batch": f"{SGD_BATCH}, or the draw where it is smaller",
        "lr_at_batch_256": SGD_RATE,
        "lr_scaling": "linear",
        "optimizer": f"SGD, Nesterov momentum {MOMENTUM}, no weight decay, no warm-up, cosine per step to 0",
        "precision": "bf16" if task.bf16 else "fp32",
        "tested": "eval mode, float32, center crop",
    }
    return Method(predict, "steps", settings, each=_each(task))


def _finetuned(task: Task) -> Method:
    images = task.images
    settings = FinetuneSettings(min_area=task.min_area, bf16=task.bf16, flip=task.flip)

    def predict(split: Split) -> Fit:
        training = settings.training(len(split.indices))
        after_step = task.training("finetuned", training.batch_size)
        classifier = finetuned(InitialWeights(task.encoder), images.train, split, settings, after_step)
        return Fit(ranking(all_logits(classifier, images.test, task.counted("finetuned")).numpy()), training.steps)

    return Method(predict, "steps", settings.describe(), each=_each(task))


def _knn(task: Task) -> Method:
    images = task.images
    queries = torch.from_numpy(images.h_test)

    def predict(split: Split) -> Fit:
        bank = torch.from_numpy(images.h[split.indices])
        labels = torch.from_numpy(images.train.labels[split.indices])
        votes = knn_votes(bank, labels, queries, task.knn_k, task.knn_temperature)
        votes[votes == 0] = -torch.inf  # not a prediction of top-5
        return Fit(ranking(votes.numpy()), min(task.knn_k, len(bank)))

    settings = {"weighted kNN of": "the run's encoder, frozen", "bank": "the draw", "T": task.knn_temperature}
    settings["neighbors"] = task.knn_k  # and at most the bank
    return Method(predict, "k", settings)


def _linear(task: Task, features_of: Callable[[int], Features], description: str) -> Method:
    """Linear evaluation of the features that `features_of` gives for the splits with a number."""
    labels = task.images.train.labels

    def predict(split: Split) -> Fit | Callable[[], Fit]:
        h, h_test = features_of(split.number)
        fit = partial(linear_evaluation, h[split.indices], labels[split.indices], h_test, split.seed)
        # A thread for each fit keeps few cores busy; of many cores, a large fit should have all.
        if len(split.indices) * h.shape[1] < LARGE or torch.get_num_threads() <= FEW_CORES:
            return fit
        with threadpool_limits(torch.get_num_threads(), "blas"):
            return fit()

    return Method(predict, "l2", {"linear evaluation of": description})


def _each(task: Task) -> Each:
    """How the networks of several splits are trained: on the CPU side by side where each is small.

    A module of the user's own may not be for several threads, nor are images that are decoded as they are read.
    """
    encoder, store = task.encoder, task.images.train.store
    small = encoder.size <= SMALL and encoder.mean.device.type == "cpu"
    return side_by_side if small and store.decoded and not encoder.name.startswith(OWN_MODULE) else map


def _features(task: Task, name: str, encoder: Encoder, train: ImageSet, test: ImageSet) -> Features:
    """h of both, for the method of this name."""
    return features(encoder, train, task.counted(name)), features(encoder, test, task.counted(name))


METHODS: dict[str, Callable[[Task], Method]] = {  # in the order of the table
    "pixels": _pixels,
    "random": _random,
    START: partial(_other, START),
    "scratch": _scratch,
    "simclr": _simclr,
    "sgd": _sgd,
    "finetuned": _finetuned,
    "knn": _knn,
}


def method(name: str, task: Task) -> Method:
    """The method of that name, or linear evaluation of the other encoder of that name."""
    return METHODS[name](task) if name in METHODS else _other(name, task)


def fits(
    method: Method, splits: list[Split], say: Callable[[Split | str], object], world: World
) -> Iterator[tuple[int, Fit | Callable[[], Fit]]]:
    """A method's fits on this rank's share of the splits, or what makes them, by their place in `splits`.

    say: called with each split before it is predicted, and with what is decided before, in words.
    """
    per_class = list(dict.fromkeys(split.labels_per_class for split in splits))
    own = {}
    for number, split in enumerate(splits):
        # Splits that share a choice stay on one rank.
        turn = per_class.index(split.labels_per_class) if method.decide else number
        if turn % world.size == world.rank:
            own[number] = split

    def predict(split: Split) -> Fit | Callable[[], Fit]:
        say(split)
        return method.predict(split)

    if method.decide:
        say(f"the choice of a {method.chooses}")
        method.decide([*own.values()])
    yield from zip(own, method.each(predict, [*own.values()]), strict=True)
