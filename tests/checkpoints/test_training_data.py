import pytest

from layershuffle.checkpoints.training_data import class_names, match_classes, trained_format
from layershuffle.data import DataConfig
from layershuffle.errors import UserError
from layershuffle.models.image_format import ImageFormat

FORMAT = ImageFormat(224, (0.5,), (0.5,))


def test_class_names():
    assert class_names(DataConfig("Digits", {}, ["a", "b"]), 2) == ["a", "b"]
    for data in (None, DataConfig("Digits", {}), DataConfig("Digits", {}, ["a"])):
        assert class_names(data, 2) is None


def test_what_the_data_does_not_say_is_as_the_model_has_it():
    for data in (None, DataConfig("Digits", {}), DataConfig("Digits", {"crop_pct": None, "batch_size": 3})):
        assert trained_format(FORMAT, data, "run.ckpt") == FORMAT
    data = DataConfig("Digits", {"crop_pct": 0.9, "crop_mode": "squash"})
    assert trained_format(FORMAT, data, "run.ckpt") == FORMAT._replace(crop_pct=0.9, crop_mode="squash")


@pytest.mark.parametrize(
    "changed", [{"crop_pct": 0}, {"crop_pct": 1e-5}, {"crop_pct": "x"}, {"interpolation": "x"}, {"crop_mode": []}]
)
def test_images_that_cannot_be_preprocessed_so(changed):
    with pytest.raises(UserError, match=r"run\.ckpt is damaged"):
        trained_format(FORMAT, DataConfig("Digits", changed), "run.ckpt")


def test_classes_are_compared_by_name():
    names = ["apple", "fern", "sea"]
    assert match_classes(names, ["sea", "apple", "fern"], "the model") == [2, 0, 1]
    for fitting in (names, None):
        assert match_classes(names, fitting, "the model") is None
    assert match_classes(None, names, "the model") is None
    for other in (["apple", "moss", "sea"], ["apple", "fern"], ["apple", "apple", "fern"]):
        with pytest.raises(UserError, match="the model"):
            match_classes(names, other, "the model")
    with pytest.raises(UserError, match="class 1 is 'a'"):
        match_classes(["a", "a", "b"], ["a", "b", "a"], "the model")
