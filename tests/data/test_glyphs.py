"""The glyphs: which characters there are, and what their images depend on."""

import math
import unicodedata

import matplotlib as mpl
import pytest
import torch
from matplotlib.ft2font import FT2Font

from layershuffle.data import Glyphs
from layershuffle.data.glyphs import FACES, all_drawn, characters, draw
from layershuffle.errors import UserError

SMALL = {"classes": 12, "images_per_class": 8, "test_images_per_class": 2}


def least_difference(images):
    """For every two characters, the least squared difference in any typeface, relative to their mean squared norm."""
    least = None
    for face in (images.float() / 255).flatten(2).unbind(dim=1):
        norms = (face**2).sum(1)
        products = face @ face.T
        relative = 2 * (norms[:, None] + norms - 2 * products) / (norms[:, None] + norms)
        least = relative if least is None else torch.minimum(least, relative)
    return least.fill_diagonal_(torch.inf)


@pytest.mark.slow
def test_the_characters_are_the_letters_and_digits_that_can_be_told_apart():
    paths = [f"{mpl.get_data_path()}/fonts/ttf/DejaVu{face}.ttf" for face in FACES]
    common = set.intersection(*(set(FT2Font(path).get_charmap()) for path in paths))
    assert len(common) == 2383
    kinds = ("Lu", "Ll", "Lt", "Lo", "Nd")
    letters = "".join(chr(code) for code in sorted(common) if unicodedata.category(chr(code)) in kinds)
    images = torch.stack([draw(letters, face) for face in FACES], dim=1)
    edges = torch.cat([images[..., [0, -1], :].flatten(2), images[..., :, [0, -1]].flatten(2)], dim=2)
    fits = (edges.amax((1, 2)) == 0) & ((images.float() / 255).mean((2, 3)).amin(1) >= 0.01)
    alike = least_difference(images) <= 0.1
    chosen = []
    for index in range(len(letters)):
        if fits[index] and not alike[index, chosen].any():
            chosen.append(index)
    assert sorted(characters()) == [letters[index] for index in chosen]


def test_no_two_characters_look_alike():
    assert len(set(characters())) == len(characters()) == 578
    assert least_difference(all_drawn()[:, :, 1]).min() > 0.1


def test_the_images_depend_on_the_arguments_alone():
    one, other = Glyphs(**SMALL).load(train=True), Glyphs(**SMALL, split_seed=5).load(train=True)
    assert one.images.shape == (96, 1, 28, 28)
    assert one.images.dtype == torch.uint8
    assert torch.equal(one.images, other.images)
    assert one.labels.bincount().tolist() == [8] * 12
    assert not torch.equal(one.images, Glyphs(**SMALL, distortion=0.5).load(train=True).images)


def test_without_distortion_an_image_is_a_typeface_that_its_split_may_show():
    held_out = ["Serif", "SansMono-Oblique"]
    data = Glyphs(**SMALL, distortion=0, test_faces=held_out)
    for train in (True, False):
        images = data.load(train)
        allowed = [index for index, face in enumerate(FACES) if (face not in held_out) == train]
        for image, label in zip(images.images, images.labels):
            same = [torch.equal(image[0], all_drawn()[label, index, 1, 6:34, 6:34]) for index in range(len(FACES))]
            assert any(same)
            assert all(index in allowed for index, found in enumerate(same) if found)


@pytest.mark.parametrize(
    "wrong",
    [{"classes": 579}, {"test_faces": ["Comic"]}, {"test_faces": FACES}, {"distortion": -1}, {"distortion": math.nan}],
)
def test_arguments_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError):
        Glyphs(**wrong)
