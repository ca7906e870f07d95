"""Image classification sets as LightningDataModules. Images stay uint8 until they are on the device."""

from layershuffle.data.digits import Digits
from layershuffle.data.folders import ImageFolders, PackedFolders
from layershuffle.data.glyphs import Glyphs
from layershuffle.data.module import ImageData, TensorImages, from_config
from layershuffle.data.preprocessing import DecodedImages, Preprocess
from layershuffle.data.torchvision_sets import TorchvisionImages

__all__ = [
    "DecodedImages",
    "Digits",
    "Glyphs",
    "ImageData",
    "ImageFolders",
    "PackedFolders",
    "Preprocess",
    "TensorImages",
    "TorchvisionImages",
    "from_config",
]
