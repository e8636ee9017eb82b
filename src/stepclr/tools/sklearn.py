"""`SimCLRTransformer`: pretraining and the encoder as scikit-learn's `fit` and `transform`.

scikit-learn's own checks decide how general X is: they pass tables of a few real numbers per row, so that a row must
become an image of some shape, and its numbers bytes by some range.
"""

import copy
import math
import operator
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import Dataset
from typeguard import TypeCheckError, check_type

from stepclr.config import PretrainOptions
from stepclr.data.folders import FolderStore
from stepclr.data.images import ImageSet
from stepclr.data.levels import to_bytes
from stepclr.data.reading import Reading
from stepclr.data.sources import open_images
from stepclr.device import default_device
from stepclr.errors import StepclrError, choose
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.encoder import Encoder
from stepclr.model.features import fill_unreadable, represent, resized
from stepclr.model.files import load_encoder, save_encoder
from stepclr.model.timm_weights import timm_name
from stepclr.model.weights import ENCODER_FILE
from stepclr.pretraining.api import pretrain
from stepclr.pretraining.resolve import view_size
from stepclr.recipes import RECIPES, recipe_config

# The parameters that are fields of PretrainConfig.
SETTINGS = ("encoder", "size", "epochs", "batch_size", "lr", "temperature", "precision")
MIN_VIEW_PX = 16  # the strides of an encoder leave nothing of a smaller view
MAX_GUESSED = 64  # numbers of a row whose shape may be made up; longer rows are images, whose shape is known
BYTE = (0.0, 255.0)


class SimCLRTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images -> representations h `[n, F]`, float32, as a scikit-learn transformer.

    X is an array of images `[n, H, W]`, `[n, H, W, 3]` or `[n, 3, H, W]`; an array or table of flattened images
    `[n, H*W]` or `[n, 3*H*W]`; a sequence of paths of image files; or any source of `open_images`: a path,
    `NAME:SPLIT`, an `ImageSet` or a torch `Dataset`. Cross-validation can split arrays, tables and sequences of paths.

    Args:
        run_or_recipe: a run's folder, an `encoder.safetensors` or "timm:NAME", whose encoder is used as it is: `fit`
            only checks X. Or the name of a recipe (`stepclr.recipes`) by which `fit` pretrains on X; None: the defaults
            of `pretrain`. A path with the name of a recipe is written "./sample".
        image_shape: (H, W), (H, W, 3) or (3, H, W) of flattened images. By default a row of a square number of numbers
            is a square gray image, and any other of at most 64 numbers is padded with black to the next square.
        value_range: (black, white), the numbers that become 0 and 255; what lies outside is clipped. By default 0..255
            if X in `fit` is uint8, what each file declares if X is files, else the smallest and the largest number of X
            in `fit`. The encoder keeps that of files.
        encoder, size, epochs, batch_size, lr, temperature, precision: as in `PretrainConfig`; None: as in the recipe.
            Unless `size` is given, views have at least 16 pixels.
        options: other fields of `PretrainConfig`, such as {"strength": 0.5}, or {"weights": "timm:NAME"} to begin with.
        random_state: the seed of `pretrain`, or a `RandomState` that draws it; None: another seed at each `fit`. The
            same seed on the same machine's CPU gives the same features, bit for bit.
        out: the folder of the run, which must not contain another one; None: a temporary folder.
        verbose: print settings and progress to standard error.

    Attributes: `encoder_` (an `Encoder` in eval mode), `value_range_`; for tables `n_features_in_` and, with named
    columns, `feature_names_in_`.

    A pickle contains the encoder as the bytes of an `encoder.safetensors`.
    """

    # scikit-learn wants __init__ to store whatever it is given, and `fit` to check it: hence Any.
    def __init__(
        self,
        run_or_recipe: Any,
        *,
        image_shape: Any = None,
        value_range: Any = None,
        encoder: Any = None,
        size: Any = None,
        epochs: Any = None,
        batch_size: Any = None,
        lr: Any = None,
        temperature: Any = None,
        precision: Any = None,
        options: Any = None,
        random_state: Any = 0,
        out: Any = None,
        verbose: Any = False,
    ) -> None:
        self.run_or_recipe = run_or_recipe
        self.image_shape = image_shape
        self.value_range = value_range
        self.encoder = encoder
        self.size = size
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.temperature = temperature
        self.precision = precision
        self.options = options
        self.random_state = random_state
        self.out = out
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "SimCLRTransformer":
        """Pretrain on the images of X by the recipe, or load the encoder of the run.

        `y` are labels `[n]`, -1, None or NaN for none; only a loss that needs labels uses them. Files that cannot be
        read are left out. Raises StepclrError, a ValueError, for parameters that cannot be used.
        """
        run = self._run()
        settings = self._settings()
        if run is not None:
            superfluous = [*settings, *(["out"] if self.out is not None else [])]
            if superfluous:
                raise StepclrError(f"{run} is pretrained already: leave out {', '.join(superfluous)}, or name a recipe")
        for stale in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(stale, None)
        images = self._images(X, fitting=True, at_least=2 if run is None else 1)
        encoder = self._pretrained(images, y, settings) if run is None else load_encoder(run)
        self.encoder_: Encoder = encoder.to(default_device())
        return self

    def transform(self, X: Any) -> Float32[np.ndarray, "n features"]:
        """Representations h `[n, F]` of the images of X, computed in float32, as `stepclr.embed` computes them.

        A file that cannot be read has a row of NaN, and a warning reports how many there are.
        """
        check_is_fitted(self, "encoder_")
        encoder = copy.copy(self.encoder_)  # a value range of these images is not kept
        images = resized(self._images(X, fitting=False), encoder)
        h, kept = represent(encoder, images)
        return fill_unreadable(h.numpy(), kept, images)

    @property
    def _n_features_out(self) -> int:
        return self.encoder_.num_features

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]  # h is float32, whatever X is
        return tags

    # A pickle has the encoder as a file that stepclr can still read in a year, on a machine without this one's GPU.
    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "encoder_" in state:
            with TemporaryDirectory() as folder:
                path = Path(folder) / ENCODER_FILE
                save_encoder(state["encoder_"], path)
                state["encoder_"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "encoder_" in state:
            with TemporaryDirectory() as folder:
                path = Path(folder) / ENCODER_FILE
                path.write_bytes(state["encoder_"])
                state = state | {"encoder_": load_encoder(path).to(default_device())}
        super().__setstate__(state)

    def _run(self) -> Path | None:
        """The path of the run; None if `run_or_recipe` is a recipe."""
        given = self.run_or_recipe
        if given is None or (isinstance(given, str) and given in RECIPES):
            return None
        if not isinstance(given, str | os.PathLike):
            raise StepclrError(f"run_or_recipe must be a path or the name of a recipe, not {given!r}")
        path = Path(given)
        if timm_name(given) is not None:
            return path
        if isinstance(given, str) and not path.exists() and path.name == given and not path.suffix:
            choose("run or recipe", given, RECIPES)  # a bare word is more likely a misspelt recipe
        return path

    def _settings(self) -> dict[str, Any]:
        """The fields of `PretrainConfig` that are given, as Python's own numbers: a grid search passes NumPy's."""
        if not isinstance(self.options, dict | None):
            raise StepclrError(f"options must be a dictionary of settings, not {self.options!r}")
        options = self.options or {}
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        for name in options:
            if name in given:
                raise StepclrError(f"{name} is given twice, by itself and among the options: leave one of them out")
            if name not in SETTINGS and name in self.get_params():
                raise StepclrError(f"{name} is a parameter of SimCLRTransformer itself: leave it out of options")
        given |= options
        if isinstance(given.get("encoder"), nn.Module):
            raise StepclrError("encoder must be the name of a network, not a module of your own: use stepclr.pretrain")
        if "seed" in given:
            raise StepclrError("the seed of a SimCLRTransformer is its random_state: leave it out of options")
        kinds = get_type_hints(PretrainOptions)
        for name, value in given.items():
            choose("option", name, kinds)
            given[name] = value.item() if isinstance(value, np.generic) else value
            kind = kinds[name]
            try:
                check_type(given[name], kind)
            except TypeCheckError:
                expected = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
                raise StepclrError(f"{name} must be {expected}, not {value!r}") from None
        return given

    def _pretrained(self, images: ImageSet, y: Any, settings: dict[str, Any]) -> Encoder:
        config = recipe_config(self.run_or_recipe)
        loss = replace(config, loss=settings.get("loss", config.loss)).loss
        if y is not None and OBJECTIVES[choose("loss", loss, OBJECTIVES)].needs_labels:
            images = _labeled(images, y)
        if settings.get("size", config.size) is None and view_size(images) < MIN_VIEW_PX:
            settings["size"] = MIN_VIEW_PX
        if isinstance(self.random_state, int | np.integer):
            seed = operator.index(self.random_state)
        else:
            seed = int(check_random_state(self.random_state).randint(2**31))
        with TemporaryDirectory(prefix="stepclr-") as folder:
            out = Path(folder) / "run" if self.out is None else self.out
            return pretrain(images, out, config=config, seed=seed, progress=bool(self.verbose), **settings).encoder()

    def _images(self, X: Any, fitting: bool, at_least: int = 1) -> ImageSet:
        if fitting:
            self.value_range_ = self._range(None)
        if isinstance(X, str | os.PathLike | ImageSet | Dataset):
            return open_images(Path(X) if isinstance(X, os.PathLike) else X).read_as(Reading(self.value_range))
        if paths := _paths(X):
            return _open_files(paths).read_as(Reading(self.value_range))
        X = X.detach().cpu() if isinstance(X, Tensor) else X
        array = check_array(X, allow_nd=True, ensure_min_samples=at_least, estimator=self)
        if array.ndim == 2:  # scikit-learn compares the number of columns and their names with those of `fit`
            validate_data(self, X, reset=fitting, skip_check_array=True)
        if fitting:
            self.value_range_ = self._range(array)
        images = _as_bytes(array, *self.value_range_)
        return open_images(_unflattened(images, self.image_shape) if images.ndim == 2 else images)

    def _range(self, array: NDArray[Any] | None) -> tuple[float, float]:
        if self.value_range is None:
            if array is None or array.dtype == np.uint8:
                return BYTE
            return float(array.min()), float(array.max())
        try:
            black, white = (float(number) for number in self.value_range)
        except (TypeError, ValueError):
            black = white = math.nan
        if not -math.inf < black < white < math.inf:
            raise StepclrError(f"value_range must be two numbers (black, white), not {self.value_range!r}")
        return black, white


def _paths(X: Any) -> list[Path]:
    """The paths in X, a sequence, an array or a column of them; empty if X is anything else."""
    if not (isinstance(X, list | tuple) or getattr(X, "ndim", 0) == 1):
        return []
    paths = list(X)
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        return []
    return [Path(path) for path in paths]


def _open_files(paths: Sequence[Path]) -> ImageSet:
    """The images in these files, in this order, without labels."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise StepclrError(f"{len(missing)} of the {len(paths)} paths of X are not files; the first is {missing[0]}")
    absolute = [os.path.abspath(path) for path in paths]
    base = Path(os.path.commonpath([os.path.dirname(path) for path in absolute]))
    names = [os.path.relpath(path, base) for path in absolute]
    labels = np.full(len(names), -1)
    return ImageSet(FolderStore(base, names), np.arange(len(names)), labels, [], names, f"{len(names)} files")


def _labeled(images: ImageSet, y: Any) -> ImageSet:
    """`images` with the labels `y`; -1 is none, as in scikit-learn's semi-supervised learners; so are None and NaN."""
    given = np.asarray(y, object)  # else -1 beside texts becomes one
    if given.shape != (len(images),):
        raise StepclrError(f"y must be {len(images)} labels, one per image, not of shape {list(given.shape)}")
    # NaN stands for no label too: it differs from itself.
    known = np.array([label not in (-1, None) and label == label for label in given.tolist()])
    try:
        classes, numbers = np.unique(given[known], return_inverse=True)
    except TypeError:  # numbers beside texts have no order
        classes, numbers = np.unique(given[known].astype(str), return_inverse=True)
    labels = np.full(len(given), -1)
    labels[known] = numbers
    return replace(images, labels=labels, classes=[str(name) for name in classes])


def _unflattened(rows: UInt8[np.ndarray, "n numbers"], shape: Any) -> UInt8[np.ndarray, "n ..."]:
    """Rows as images of `shape`; without one, as square gray images."""
    n, numbers = rows.shape
    if shape is not None:
        try:
            return rows.reshape(n, *shape)
        except (TypeError, ValueError):
            raise StepclrError(
                f"image_shape must be (H, W), (H, W, 3) or (3, H, W) with {numbers} numbers, the length of a row of X, "
                f"not {shape!r}"
            ) from None
    side = math.isqrt(numbers - 1) + 1
    if side**2 != numbers and numbers > MAX_GUESSED:
        raise StepclrError(f"a row of X has {numbers} numbers, not a square: pass image_shape")
    return np.pad(rows, ((0, 0), (0, side**2 - numbers))).reshape(n, side, side)


def _as_bytes(images: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """uint8, 0 for black and 255 for white. Warns of numbers so far outside that they must be on another scale."""
    if images.dtype == np.uint8 and (black, white) == BYTE:
        return images
    smallest, largest = float(images.min()), float(images.max())
    if max(black - smallest, largest - white) > 2 * (white - black) > 0:
        warnings.warn(
            f"X has numbers from {smallest:g} to {largest:g}, but the transformer was fitted to {black:g} (black) to "
            f"{white:g} (white): what lies outside is clipped",
            stacklevel=4,
        )
    return to_bytes(images, black, white)
