"""The numbers of the LayerShuffle paper (arXiv 2407.04513, section 4), to set beside those measured here."""

from typing import NamedTuple

METHODS = ("baseline", "layershuffle", "layershuffle-position", "layershuffle-predict")

SEEDS = 5
"""How many seeds each number in table 1 is the mean of."""


class Accuracy(NamedTuple):
    """Mean and standard deviation over the seeds, in percent."""

    mean: float
    std: float


BACKBONES = {
    "vit_base_patch16_224.orig_in21k_ft_in1k": "ViT-B/16",
    "deit_base_distilled_patch16_224.fb_in1k": "DeiT-B",
    "deit_base_distilled_patch16_224": "DeiT-B",  # timm has no other weights of it
}
"""The paper's names of the weights that it starts from; other weights of the same shape are other backbones."""
SHAPE = {"depth": 12, "embed_dim": 768, "patch_size": 16, "img_size": 224}
"""The shape of both backbones, in the words of ``create_model``."""
DATA = {"imagenet": "ImageNet-1k", "CIFAR100": "CIFAR-100"}

# Mean and standard deviation of each of METHODS, one method after the other, as table 1 prints them.
_ROWS = {
    ("ViT-B/16", "ImageNet-1k", "sequential"): "82.61 0.08 75.22 0.28 75.28 0.18 74.41 0.20",
    ("ViT-B/16", "ImageNet-1k", "arbitrary"): "0.13 0.03 62.77 0.41 63.61 0.23 61.18 1.06",
    ("DeiT-B", "ImageNet-1k", "sequential"): "81.16 0.06 76.57 0.12 76.18 0.46 75.08 0.27",
    ("DeiT-B", "ImageNet-1k", "arbitrary"): "0.12 0.05 66.62 0.4 65.89 1.28 64.51 0.85",
    ("ViT-B/16", "CIFAR-100", "sequential"): "89.62 0.26 64.43 0.95 61.98 0.49 60.88 0.76",
    ("ViT-B/16", "CIFAR-100", "arbitrary"): "0.64 0.13 54.34 2.64 55.47 1.41 53.53 1.45",
    ("DeiT-B", "CIFAR-100", "sequential"): "87.31 0.25 75.04 0.83 72.13 1.5 66.94 0.6",
    ("DeiT-B", "CIFAR-100", "arbitrary"): "0.53 0.16 64.99 0.76 64.31 1.70 58.77 1.18",
}

TABLE_1: dict[tuple[str, str, str, str], Accuracy] = {}
"""By (backbone, data, "sequential" or "arbitrary", method)."""

# The table above reads as the paper's does, and the lookup needs one entry for each number.
for _row, _text in _ROWS.items():
    # Mean and standard deviation take turns.
    _numbers = [float(number) for number in _text.split()]
    for _place, _method in enumerate(METHODS):
        TABLE_1[*_row, _method] = Accuracy(_numbers[2 * _place], _numbers[2 * _place + 1])

POSITION_ACCURACY = 99.99
"""In percent, of layershuffle-predict (section 4.1)."""

PRUNED = (
    "ViT-B/16 on ImageNet-1k, in original sequence: with 3 layers, layershuffle has about 18% and LayerDrop is near 0; "
    "with 6 layers the two are on par; with 9 layers they have from 70 to 80%."
)
"""What figure 1b shows."""
PRUNED_SETUP = ("ViT-B/16", "ImageNet-1k")
"""The backbone and the data of figure 1b."""
