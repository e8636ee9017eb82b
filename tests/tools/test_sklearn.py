"""`SimCLRTransformer` passes scikit-learn's own checks, and its h is that of `pretrain` and `embed`."""

import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from small import photos_in

import stepclr
from stepclr.tools.sklearn import _labeled

SMALL: dict[str, Any] = {"encoder": "test_resnet", "epochs": 1, "batch_size": 16}
# A check allows a difference of 1e-7 whatever the size of h, and one image's convolution is another kernel than 20's:
# h of unit norm differs by a tenth of that. `test_row_by_row` measures the difference against h as it is.
CHECKED = stepclr.SimCLRTransformer("sample", **SMALL, options={"head": "16-8", "normalize_h": True})
SKIPPED = {
    "check_array_api_input": "wants SCIPY_ARRAY_API=1 before scipy is imported: test_in_another_process runs it",
}


@parametrize_with_checks([CHECKED])  # type: ignore[untyped-decorator]
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    name = getattr(check, "func", check).__name__
    if name in SKIPPED:
        pytest.skip(SKIPPED[name])
    check(estimator)


def test_few_checks_are_skipped() -> None:
    assert len(SKIPPED) <= 10


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    """64 images [n, 28, 28] in gray, and the names of their classes."""
    return arrays("sample:train", 64)


@pytest.fixture(scope="module")
def unseen() -> tuple[np.ndarray, np.ndarray]:
    return arrays("sample:test", 30)


def arrays(source: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    images = stepclr.open_images(source, limit=limit)
    pixels = images.read(range(limit))
    assert isinstance(pixels, torch.Tensor)
    return pixels[:, 0].numpy(), np.array(images.classes)[images.labels]


@pytest.fixture(scope="module")
def run(train: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    return stepclr.pretrain(train[0], out, recipe="sample", progress=False, **SMALL)


@pytest.fixture(scope="module")
def fitted(train: tuple[np.ndarray, np.ndarray]) -> stepclr.SimCLRTransformer:
    return stepclr.SimCLRTransformer("sample", **SMALL).fit(train[0])


def test_a_fit_is_pretrain_and_transform_is_embed(
    run: stepclr.Run, fitted: stepclr.SimCLRTransformer, unseen: tuple[np.ndarray, np.ndarray]
) -> None:
    h = fitted.transform(unseen[0])
    assert h.dtype == np.float32
    assert np.ptp(h, axis=0).max() > 0
    np.testing.assert_array_equal(h, stepclr.embed(run, unseen[0]))
    names = fitted.get_feature_names_out()
    assert (names[0], len(names)) == ("simclrtransformer0", h.shape[1])


def test_a_run_is_not_trained_again(
    run: stepclr.Run, unseen: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepclr.tools.sklearn.pretrain", None)
    for name in (run, str(run.folder), run.folder / "encoder.safetensors"):
        h = stepclr.SimCLRTransformer(name).fit(unseen[0][:1]).transform(unseen[0])
        np.testing.assert_array_equal(h, stepclr.embed(run, unseen[0]))


def test_a_pipeline_is_a_classifier_on_embeddings(
    run: stepclr.Run, train: tuple[np.ndarray, np.ndarray], unseen: tuple[np.ndarray, np.ndarray]
) -> None:
    (x, y), (x_test, y_test) = train, unseen
    pipeline = make_pipeline(stepclr.SimCLRTransformer(run), LogisticRegression(max_iter=1000)).fit(x, y)
    by_hand = LogisticRegression(max_iter=1000).fit(stepclr.embed(run, x), y)
    np.testing.assert_array_equal(pipeline.predict(x_test), by_hand.predict(stepclr.embed(run, x_test)))
    assert len(set(pipeline.predict(x_test))) > 2
    assert pipeline.score(x_test, y_test) == by_hand.score(stepclr.embed(run, x_test), y_test)


def test_a_grid_search_over_its_own_parameters(train: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = train[0][:40], train[1][:40] < "Dress"
    pipeline = make_pipeline(stepclr.SimCLRTransformer("sample", **SMALL), LogisticRegression(max_iter=1000))
    grid = {"simclrtransformer__epochs": np.array([1, 2]), "logisticregression__C": [1.0, 10.0]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(x).shape == (40,)


def test_clone_has_the_parameters_and_not_the_encoder(fitted: stepclr.SimCLRTransformer, tmp_path: Path) -> None:
    given = {**fitted.get_params(), "out": tmp_path, "options": {"strength": 0.5}}
    copy = clone(fitted.set_params()).set_params(**given)
    assert copy.get_params() == given
    assert not hasattr(copy, "encoder_")


def test_in_another_process(
    fitted: stepclr.SimCLRTransformer, unseen: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """A pickle gives the same features there; and the one check is run that needs an environment of its own."""
    unfitted = pickle.loads(pickle.dumps(CHECKED))
    assert unfitted.get_params() == CHECKED.get_params()
    (tmp_path / "both.pickle").write_bytes(pickle.dumps((fitted, CHECKED)))
    np.save(tmp_path / "x.npy", unseen[0])
    code = """
import pickle, numpy as np
from sklearn.utils.estimator_checks import check_array_api_input
fitted, checked = pickle.loads(open("both.pickle", "rb").read())
np.save("h.npy", fitted.transform(np.load("x.npy")))
check_array_api_input("SimCLRTransformer", checked, array_namespace="numpy", expect_only_array_outputs=False)
"""
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "h.npy"), fitted.transform(unseen[0]))


def test_a_pickle_holds_the_encoder_as_bytes_alone(fitted: stepclr.SimCLRTransformer) -> None:
    content = pickle.dumps(fitted)
    assert b"timm" not in content.replace(b"timm_", b"")
    assert b"torch" not in content
    assert isinstance(pickle.loads(content).encoder_, stepclr.Encoder)


def test_row_by_row(fitted: stepclr.SimCLRTransformer, unseen: tuple[np.ndarray, np.ndarray]) -> None:
    h = fitted.transform(unseen[0])
    one_by_one = np.concatenate([fitted.transform(image[None]) for image in unseen[0]])
    assert np.abs(one_by_one - h).max() < 1e-5 * np.abs(h).max()


def test_the_same_seed_gives_the_same_features(train: tuple[np.ndarray, np.ndarray]) -> None:
    def h(random_state: Any) -> np.ndarray:
        return np.asarray(stepclr.SimCLRTransformer("sample", **SMALL, random_state=random_state).fit_transform(x))

    x = train[0][:32]
    np.testing.assert_array_equal(h(3), h(np.int64(3)))
    np.testing.assert_array_equal(h(np.random.RandomState(3)), h(np.random.RandomState(3)))
    assert (h(3) != h(4)).any()
    assert (h(None) != h(None)).any()


@pytest.mark.parametrize("as_string", [True, False])
def test_paths_are_the_images_in_them(
    as_string: bool, fitted: stepclr.SimCLRTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(photos_in(tmp_path / "a" / "photos", 12).iterdir())
    (tmp_path / "b").mkdir()
    paths[3] = Path(shutil.move(paths[3], tmp_path / "b" / "3.png"))
    monkeypatch.chdir(tmp_path)
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    column = [str(path.relative_to(tmp_path)) for path in paths] if as_string else paths
    np.testing.assert_array_equal(fitted.transform(column), fitted.transform(images))
    np.testing.assert_array_equal(fitted.transform(np.array(column)[::-1]), fitted.transform(images[::-1]))
    again = [clone(fitted).fit(x).transform(images) for x in (column, images)]
    np.testing.assert_array_equal(*again)


def test_sources_that_open_images_takes(fitted: stepclr.SimCLRTransformer, here: Path) -> None:
    h = fitted.transform(stepclr.open_images(here / "photos"))
    np.testing.assert_array_equal(fitted.transform(here / "photos"), h)
    np.testing.assert_array_equal(fitted.transform(str(here / "photos")), h)
    np.testing.assert_array_equal(fitted.transform(sorted((here / "photos").iterdir())), h)


def test_a_file_that_cannot_be_read_is_a_row_of_nan(fitted: stepclr.SimCLRTransformer, tmp_path: Path) -> None:
    paths = sorted(photos_in(tmp_path / "photos", 4).iterdir())
    paths[1].write_bytes(b"no image")
    with pytest.warns(UserWarning, match="^1 images of 4 files cannot be read: their rows are NaN$"):
        h = fitted.transform(paths)
    assert np.isnan(h).all(axis=1).tolist() == [False, True, False, False]
    with pytest.raises(stepclr.StepclrError, match=r"^1 of the 2 paths of X are not files; the first is gone\.png$"):
        fitted.transform([paths[0], "gone.png"])


@pytest.mark.parametrize("shape", [(12, 18), (12, 18, 3), (3, 12, 18), None])
def test_rows_are_the_images_laid_flat(
    shape: tuple[int, ...] | None, run: stepclr.Run, fitted: stepclr.SimCLRTransformer
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *(shape or (20, 20))), dtype=np.uint8)
    by_rows = stepclr.SimCLRTransformer(run, image_shape=shape).fit(images.reshape(5, -1))
    assert by_rows.n_features_in_ == images[0].size
    np.testing.assert_array_equal(by_rows.transform(images.reshape(5, -1)), fitted.transform(images))
    with pytest.raises(ValueError, match="expecting"):
        by_rows.transform(images.reshape(5, -1)[:, :-1])
    assert not hasattr(by_rows.fit(images), "n_features_in_")


@pytest.mark.parametrize("scale", [1.0, 255.0, 1 / 255])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_the_bytes_they_stand_for(scale: float, dtype: Any, run: stepclr.Run) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 9), dtype=np.uint8)
    images[0, 0, :2] = 0, 255
    expected = stepclr.embed(run, images)
    numbers = (images * scale - 7).astype(dtype)
    learned = stepclr.SimCLRTransformer(run).fit(numbers)
    np.testing.assert_array_equal(learned.transform(numbers), expected)
    np.testing.assert_array_equal(learned.transform(numbers[1:2]), stepclr.embed(run, images[1:2]))  # fit's range
    given = stepclr.SimCLRTransformer(run, value_range=(-7, 255 * scale - 7)).fit(numbers[2:3])
    np.testing.assert_array_equal(given.transform(numbers), expected)


def test_a_value_range_of_images_to_transform_is_not_kept(run: stepclr.Run, tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 60).save(tmp_path / "deep.png")
    transformer = stepclr.SimCLRTransformer(run).fit(np.zeros((2, 8, 8, 3), np.uint8))
    before = transformer.encoder_.value_range
    transformer.transform(stepclr.open_images(tmp_path, value_range=(0, 4095)))
    assert transformer.encoder_.value_range == before
    exported = stepclr.export(
        run, tmp_path / "x.safetensors", "safetensors", check=stepclr.open_images(tmp_path, value_range=(0, 4095))
    )
    assert stepclr.load_encoder(exported.path).value_range == before


def test_other_kinds_of_numbers(run: stepclr.Run, unseen: tuple[np.ndarray, np.ndarray]) -> None:
    x = unseen[0][:6]
    transformer = stepclr.SimCLRTransformer(run).fit(x)
    for same in (x.astype(np.int64), x.astype(np.float32), torch.from_numpy(x), x.tolist(), x.reshape(6, -1)):
        np.testing.assert_array_equal(transformer.transform(same), stepclr.embed(run, x))
    mask = x > 100
    h = stepclr.SimCLRTransformer(run).fit(mask).transform(mask)
    np.testing.assert_array_equal(h, stepclr.embed(run, mask * np.uint8(255)))
    with pytest.warns(UserWarning, match=r"X has numbers from 0 to 255, .* fitted to 0 \(black\) to 1 \(white\)"):
        stepclr.SimCLRTransformer(run).fit(mask / 1).transform(x)


def test_labels_are_for_a_recipe_that_learns_from_them(train: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = train[0][:32], train[1][:32]
    options = {"linear_epochs": 0}
    learner = stepclr.SimCLRTransformer("sample-supcon", **SMALL, options=options)
    h = learner.fit_transform(x, y)
    labels = np.unique(y, return_inverse=True)[1]
    expected = clone(learner).fit(stepclr.open_images((x, labels))).transform(x)
    np.testing.assert_array_equal(h, expected)
    labels[::2] = -1
    half = clone(learner).fit(stepclr.open_images((x, labels))).transform(x)
    np.testing.assert_array_equal(clone(learner).fit_transform(x, labels), half)
    assert (h != half).any()
    names = [-1 if label < 0 else f"class {label}" for label in labels]
    nan = np.where(labels < 0, np.nan, labels)
    for same in (names, nan, [None if label < 0 else label for label in labels]):
        np.testing.assert_array_equal(clone(learner).fit_transform(x, same), half)
    with pytest.raises(stepclr.StepclrError, match="needs labels"):
        learner.fit(x)
    with pytest.raises(stepclr.StepclrError, match="y must be 32 labels, one per image, not of shape"):
        learner.fit(x, y[:3])


def test_out_keeps_the_run(train: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    h = stepclr.SimCLRTransformer("sample", **SMALL, out=tmp_path / "run").fit_transform(train[0])
    np.testing.assert_array_equal(h, stepclr.embed(tmp_path / "run", train[0]))
    assert stepclr.Run(tmp_path / "run").config.epochs == 1
    with pytest.raises(stepclr.StepclrError, match="already contains a run"):
        stepclr.SimCLRTransformer("sample", **SMALL, out=tmp_path / "run").fit(train[0])


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (
            {"run_or_recipe": "smaple"},
            r"unknown run or recipe 'smaple'\. Did you mean 'sample'\? There are: sample, .*",
        ),
        ({"run_or_recipe": "runs/none"}, r"runs/none has no encoder\.safetensors; .*"),
        ({"run_or_recipe": 3}, r"run_or_recipe must be a path or the name of a recipe, not 3"),
        ({"image_shape": (28, 27)}, r"image_shape must be .* with 784 numbers, .*, not \(28, 27\)"),
        ({"image_shape": 28}, r"image_shape must be \(H, W\), \(H, W, 3\) or \(3, H, W\) with .*, not 28"),
        ({"image_shape": (2, 392, 1, 1)}, r"images must be .*"),
        ({"image_shape": (28, 1, 28)}, r"images must have 1 to 16 channels, .*"),
        ({"value_range": (1, 0)}, r"value_range must be two numbers \(black, white\), not \(1, 0\)"),
        ({"value_range": "ab"}, r"value_range must be two numbers .*"),
        ({"epochs": 0}, r"epochs must be above 0, not 0"),
        ({"epochs": "2"}, r"epochs must be int \| float \| None, not '2'"),
        ({"lr": "fast"}, r"lr must be float \| None, not 'fast'"),
        ({"temperature": float("nan")}, r"temperature must be a finite number, not nan"),
        ({"lr": -1.0}, r"lr must be above 0, not -1\.0"),
        ({"batch_size": "16"}, r"batch_size must be int, not '16'"),
        ({"encoder": "test_resnt"}, r"unknown encoder 'test_resnt'\. Did you mean 'test_resnet'\? .*"),
        ({"precision": 16}, r"precision must be Literal\['auto', 'bf16', 'fp32'\], not 16"),
        ({"options": {"temprature": 1}}, r"unknown option 'temprature'\. Did you mean 'temperature'\? .*"),
        ({"options": {"seed": 1}}, r"the seed of a SimCLRTransformer is its random_state: leave it out of options"),
        ({"encoder": torch.nn.Flatten()}, r"encoder must be the name of a network, not a module of your own: .*"),
        ({"options": 1}, r"options must be a dictionary of settings, not 1"),
        ({"options": {"out": "runs/a"}}, r"out is a parameter of SimCLRTransformer itself: leave it out of options"),
        ({"options": {"epochs": 2}}, r"epochs is given twice, by itself and among the options: leave one of them out"),
        ({"options": {"progress": True}}, r"unknown option 'progress'.*"),
        ({"options": {"limit": 3}}, r"unknown option 'limit'.*"),
        ({"value_range": (0, math.inf)}, r"value_range must be two numbers \(black, white\), not \(0, inf\)"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    parameters: dict[str, Any], says: str, train: tuple[np.ndarray, np.ndarray]
) -> None:
    transformer = stepclr.SimCLRTransformer(**{"run_or_recipe": "sample", **SMALL, **parameters})
    if "none" in says:
        transformer.set_params(**dict.fromkeys(SMALL))
    with pytest.raises(stepclr.StepclrError, match=f"^{says}$") as error:
        transformer.fit(train[0].reshape(64, -1))
    assert "\n" not in str(error.value)


def test_labels_of_several_kinds_are_names(train: tuple[np.ndarray, np.ndarray]) -> None:
    y = [(1, "b", None, "a")[i % 4] for i in range(64)]
    fitted = stepclr.SimCLRTransformer("sample", **SMALL, options={"loss": "supcon"}).fit(train[0], y)
    assert fitted.transform(train[0][:2]).shape[0] == 2


def test_labels_that_are_numbers_keep_their_order(train: tuple[np.ndarray, np.ndarray]) -> None:
    """10 comes behind 9, not behind 1."""
    images = stepclr.open_images(train[0][:3])
    labeled = _labeled(images, np.array([10, 9, 1]))
    assert labeled.classes == ["1", "9", "10"]
    assert labeled.labels.tolist() == [2, 1, 0]


def test_rows_that_are_no_square_ask_for_their_shape(run: stepclr.Run) -> None:
    says = r"a row of X has 3072 numbers, not a square: pass image_shape"
    with pytest.raises(stepclr.StepclrError, match=f"^{says}$"):
        stepclr.SimCLRTransformer(run).fit(np.zeros((2, 3072), np.uint8))


def test_a_run_takes_no_settings_of_training(run: stepclr.Run, train: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(stepclr.StepclrError, match=r"is pretrained already: leave out epochs, out, or name a recipe$"):
        stepclr.SimCLRTransformer(run, epochs=np.int64(3), out="runs/b").fit(train[0])


def test_a_table_keeps_its_columns_names(run: stepclr.Run) -> None:
    table = pytest.importorskip("pyarrow").table({name: [0.0, 0.5, 1.0] for name in "abc"})
    transformer = stepclr.SimCLRTransformer(run).fit(table)
    assert transformer.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="same order"):
        transformer.transform(table.select(["a", "c", "b"]))


def test_import_stays_light() -> None:
    code = "import sys, stepclr; dir(stepclr); assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
