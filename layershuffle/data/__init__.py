"""Image classification sets as LightningDataModules. Images stay uint8 until they are on the device."""

from layershuffle.data.config import DataConfig
from layershuffle.data.digits import Digits
from layershuffle.data.folders import ImageFolders
from layershuffle.data.glyphs import Glyphs
from layershuffle.data.hugging_face import HuggingFaceImages
from layershuffle.data.image_table import ImageTable
from layershuffle.data.imagenet_robustness import ImageNetRobustness
from layershuffle.data.module import ImageData
from layershuffle.data.packed import PackedFolders
from layershuffle.data.preprocessing import DecodedImages, Preprocess, Resizing
from layershuffle.data.recorded import from_config, warn_of_training_images
from layershuffle.data.sets import TensorImages
from layershuffle.data.splits import SplitImages
from layershuffle.data.torchvision_sets import TorchvisionImages

__all__ = [
    "DataConfig",
    "DecodedImages",
    "Digits",
    "Glyphs",
    "HuggingFaceImages",
    "ImageData",
    "ImageFolders",
    "ImageNetRobustness",
    "ImageTable",
    "PackedFolders",
    "Preprocess",
    "Resizing",
    "SplitImages",
    "TensorImages",
    "TorchvisionImages",
    "from_config",
    "warn_of_training_images",
]
