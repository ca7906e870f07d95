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
    """For every two characters, the least squared difference in any typeface, relative to their mean squared norm.

    Args:
        images: uint8 [characters, typefaces, height, width].

    Returns:
        [characters, characters], infinite for a character and itself.
    """
    least = torch.full((len(images), len(images)), torch.inf)
    for of_face in (images.float() / 255).flatten(2).unbind(dim=1):
        norms = (of_face**2).sum(1)
        sums_of_norms = norms[:, None] + norms
        differences = sums_of_norms - 2 * of_face @ of_face.T
        least = torch.minimum(least, differences / (sums_of_norms / 2))
    return least.fill_diagonal_(torch.inf)


@pytest.mark.slow
def test_the_characters_are_the_letters_and_digits_that_can_be_told_apart():
    charmaps = []
    for face in FACES:
        font = FT2Font(f"{mpl.get_data_path()}/fonts/ttf/DejaVu{face}.ttf")
        charmaps.append(set(font.get_charmap()))
    codes = set.intersection(*charmaps)
    assert len(codes) == 2383
    # Letters of upper, lower, title and no case, and decimal digits.
    kinds = ("Lu", "Ll", "Lt", "Lo", "Nd")
    letters = "".join(chr(code) for code in sorted(codes) if unicodedata.category(chr(code)) in kinds)
    images = torch.stack([draw(letters, face) for face in FACES], dim=1)

    # A character must fit into its image, and something must be seen of it, in every typeface.
    rows_at_edge = images[..., [0, -1], :].flatten(2)
    columns_at_edge = images[..., :, [0, -1]].flatten(2)
    edges = torch.cat([rows_at_edge, columns_at_edge], dim=2)
    ink = (images.float() / 255).mean((2, 3))
    fits = (edges.amax((1, 2)) == 0) & (ink.amin(1) >= 0.01)

    # Of characters that look alike, the first one is taken.
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
    train = Glyphs(**SMALL).load(train=True)
    assert train.images.shape == (12 * 8, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [8] * 12

    with_another_seed = Glyphs(**SMALL, split_seed=5).load(train=True)
    assert torch.equal(train.images, with_another_seed.images)
    less_distorted = Glyphs(**SMALL, distortion=0.5).load(train=True)
    assert not torch.equal(train.images, less_distorted.images)


def test_without_distortion_an_image_is_a_typeface_that_its_split_may_show():
    test_faces = ["Serif", "SansMono-Oblique"]
    training_faces = [face for face in FACES if face not in test_faces]
    data = Glyphs(**SMALL, distortion=0, test_faces=test_faces)
    for train, allowed in ((True, training_faces), (False, test_faces)):
        images = data.load(train)
        for (image,), label in zip(images.images, images.labels):
            # The middle of what is drawn is the image. Simple letters are the same in several typefaces.
            faces = set()
            for index, face in enumerate(FACES):
                drawn = all_drawn()[label, index, 1, 6:34, 6:34]
                if torch.equal(image, drawn):
                    faces.add(face)
            assert faces
            assert faces.issubset(allowed)


@pytest.mark.parametrize(
    "wrong",
    [{"classes": 579}, {"test_faces": ["Comic"]}, {"test_faces": FACES}, {"distortion": -1}, {"distortion": math.nan}],
)
def test_arguments_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError):
        Glyphs(**wrong)
