"""What a checkpoint records of its model and training, and the damaged records that are refused."""

import pytest

from layershuffle.checkpoints.metadata import FIELDS, METADATA_KEY, CheckpointMetadata
from layershuffle.data import DataConfig
from layershuffle.errors import UserError, shown

MODEL = {"name": "vit_tiny_patch16_224", "num_classes": 10, "position": "none"}
MERGED = {"sources": [{"source": "a.ckpt", "sha256": "0"}, {"source": "b.ckpt", "sha256": "1"}], "layers": [0, 1, 1]}
WHOLE = {
    "version": "1.0",
    "model": MODEL,
    "method": "layershuffle",
    "sampler": "Shuffle()",
    "position_loss": "sum",
    "class_weights": [1.0, 2.0],
    "distillation": {"teacher": "a.ckpt", "weight": 0.5, "temperature": 1.0, "sha256": None},
    "seed": 3,
    "compute": {"images": 10, "seconds": 0.5},
    "precision": "32-true",
    "data": {"class": "Digits", "args": {}, "classes": None},
    "wandb": {"id": "x", "project": "y"},
}


def read(values):
    """What is read of a checkpoint run.ckpt with this record."""
    return CheckpointMetadata.from_content({METADATA_KEY: values}, "run.ckpt")


def test_what_is_written_is_read():
    for values in (WHOLE, {**WHOLE, "merged": MERGED}):
        written = read(values).to_dict()
        assert written == values
        assert list(written) == list(FIELDS[: len(values)])  # in this sequence
    assert "merged" not in read(WHOLE).to_dict()


def test_what_is_known_of_the_data_has_types():
    """Checkpoints of earlier versions have no names of classes, and a data set of one's own may have numbers."""
    without_names = {"class": "Digits", "args": {"batch_size": 7}}
    with_numbers = without_names | {"classes": [1, 2]}
    with_names = without_names | {"classes": ["a", "b"]}
    assert read(WHOLE | {"data": without_names}).data == DataConfig("Digits", {"batch_size": 7})
    assert read(WHOLE | {"data": with_numbers}).data.classes is None
    assert read(WHOLE | {"data": with_names}).data.classes == ["a", "b"]


def test_only_the_model_has_to_be_there():
    metadata = read({"model": MODEL})
    assert metadata == CheckpointMetadata(model=MODEL)
    assert metadata.seed is None
    assert metadata.compute is None
    assert metadata.data is None


@pytest.mark.parametrize("content", [{}, {METADATA_KEY: 1}, {METADATA_KEY: {}}, {METADATA_KEY: {"model": "x"}}])
def test_other_files_have_no_metadata(content):
    with pytest.raises(UserError, match="--pretrained run.ckpt"):
        CheckpointMetadata.from_content(content, "run.ckpt")


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 1},
        {"model": {1: 2}},
        {"seed": "x"},
        {"seed": True},
        {"compute": {"seconds": -1}},
        {"compute": {"images": float("nan")}},
        {"compute": {"images": "many"}},
        {"class_weights": [1.0, -1.0]},
        {"class_weights": 1},
        {"distillation": {}},
        {"data": [1]},
        {"data": "x"},
        {"data": {}},
        {"data": {"class": "Digits"}},
        {"data": {"class": 1, "args": {}}},
        {"data": {"class": "Glyphs", "args": {"test_images_per_class": 10**9}, "classes": None}},
        {"data": {"class": "TorchvisionImages", "args": {"test_args": {"size": 10**9}}, "classes": None}},
        {"data": {"class": "Digits", "args": {"val_fraction": float("nan")}, "classes": None}},
        {"data": {"class": "Digits", "args": {"root": {1, 2}}, "classes": None}},
        {"model": {**MODEL, "position": "unknown"}},
        {"model": {**MODEL, "position": ["none"]}},
        {"model": {**MODEL, "drop_path_rate": float("nan")}},
        {"model": {**MODEL, "head": "average of all"}},
        {"model": {**MODEL, "norm_eps": -1e-6}},
        {"model": {**MODEL, "norm_eps": 1e30}},
        {"model": {**MODEL, "positions": True}},
        {"model": {**MODEL, "depth": 10**30}},
        {"data": {"class": "Digits", "args": {"batch_size": 10**9}, "classes": None}},
        {"data": {"class": "Digits", "args": {"root": "x" * 10**6}, "classes": None}},
        {"data": {"class": "Digits", "args": {"root": 10**5000}, "classes": None}},
        {"seed": 10**5000},
        {"compute": {"images": 10**30}},
        {"distillation": {"teacher": [{1, 2}], "sha256": None}},
        {"wandb": {"id": 1}},
        {"merged": {"sources": [], "layers": [0]}},
        {"merged": {**MERGED, "layers": [2]}},
        {"merged": {"layers": []}},
    ],
    ids=shown,
)
def test_values_that_cannot_be(changed):
    (field,) = changed
    with pytest.raises(UserError, match=f"run.ckpt is damaged: its {field}"):
        read(WHOLE | changed)


def test_the_place_of_what_cannot_be_is_named_on_one_line():
    args = {"train_args": {"size\n": [1, "a\nb" * 10**5]}}
    data = {"class": "Digits", "args": args, "classes": None}
    with pytest.raises(UserError, match=r"its data\.args\.train_args\.size") as error:
        read(WHOLE | {"data": data})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("depth", [19, 200])
def test_lists_that_hold_the_same_list_again_and_again_take_no_time(depth):
    """Of 10 to the power of ``depth`` values, or endlessly many."""
    values = ["x"]
    for _ in range(depth):
        values = [values] * 10
    circle = [1]
    circle.append(circle)
    for value in (values, circle):
        with pytest.raises(UserError, match="run.ckpt is damaged: its data"):
            read(WHOLE | {"data": {"class": "Digits", "args": {"root": value}}})
        with pytest.raises(UserError, match="run.ckpt is damaged: its model"):
            read(WHOLE | {"model": {**MODEL, "name": value}})
        for field in ("seed", "version", "class_weights", "distillation", "merged", "wandb"):
            with pytest.raises(UserError, match=field):
                read(WHOLE | {field: value})
