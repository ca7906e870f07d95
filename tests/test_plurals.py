"""Numbers with what they count."""

import pytest

from layershuffle.plurals import counted, form


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "batch", "1 batch"),
        (2, "batch", "2 batches"),
        (0, "class", "0 classes"),
        (1250, "test image", "1,250 test images"),
        (1.0, "epoch", "1 epoch"),
        (0.5, "epoch", "0.5 epochs"),
    ],
)
def test_a_number_has_the_form_of_its_noun(number, noun, text):
    assert counted(number, noun) == text


def test_the_noun_alone():
    assert [form(number, "pass") for number in (1, 3)] == ["pass", "passes"]
