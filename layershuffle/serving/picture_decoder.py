"""Decodes the pictures of requests, in a few threads of its own."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import open_file, open_image

MOST_PIXELS = 25_000_000
"""The pixels of the largest picture; a few bytes may ask for many. The largest of ImageNet-1k has 17 million."""
LARGE_PIXELS = 4_000_000
"""Larger pictures are decoded one at a time, while others go on."""


class PictureDecoder:
    """Makes the model's input of the bytes of a picture. Large pictures wait for each other alone.

    Args:
        loaded: the model, which knows how pictures are preprocessed.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._small = ThreadPoolExecutor(2, "decode")
        self._large = ThreadPoolExecutor(1, "decode-large")

    async def decode(self, content: bytes) -> Tensor:
        """The model's input, float32 [1, channels, size, size].

        Raises ValueError if the picture has more than ``MOST_PIXELS``, and whatever Pillow raises if it is broken.
        """
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._small, _count_pixels, content)
        if pixels > MOST_PIXELS:
            raise ValueError(f"{pixels:,} pixels are more than {MOST_PIXELS:,}")
        executor = self._large if pixels > LARGE_PIXELS else self._small
        return await loop.run_in_executor(executor, self._decode, content)

    def _decode(self, content: bytes) -> Tensor:
        return self.loaded.preprocess([open_image(io.BytesIO(content))])

    def close(self) -> None:
        """End the threads, as soon as they have decoded what they are at."""
        for executor in (self._small, self._large):
            executor.shutdown(wait=False, cancel_futures=True)


def _count_pixels(content: bytes) -> int:
    """How many pixels a picture says that it has, without decoding it."""
    with open_file(io.BytesIO(content)) as image:
        return image.width * image.height
