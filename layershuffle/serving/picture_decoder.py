"""Decodes the pictures of requests, in a few threads of its own."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import open_file, open_image

MOST_PIXELS = 25_000_000
"""The pixels of the largest picture; a few bytes may ask for many. The largest of ImageNet-1k has 17 million."""
LARGE_PIXELS = 2_000_000
"""Larger pictures are decoded one at a time, while others go on."""
QUICK_FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
"""The formats that Pillow decodes in C while Python goes on.

JPEG 2000 stops every thread for seconds, and others, such as QOI, are decoded by Python itself."""
MOST_SLOW_PIXELS = 500_000
"""The pixels of the largest picture in any other format."""


class PictureDecoder:
    """Makes the model's input of the bytes of a picture. Large pictures wait for each other alone.

    Args:
        loaded: the model, which knows how pictures are preprocessed.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        # Not asyncio's own threads, which the cluster needs: pictures could keep all of them busy.
        self._small = ThreadPoolExecutor(2, "decode")
        self._large = ThreadPoolExecutor(1, "decode-large")

    async def decode(self, content: bytes) -> Tensor:
        """The model's input, float32 [1, channels, size, size].

        Raises ValueError if the picture has too many pixels for its format, and whatever Pillow raises if it is broken.
        """
        loop = asyncio.get_running_loop()
        is_large = await loop.run_in_executor(self._small, _is_large, content)
        executor = self._large if is_large else self._small
        # When a request's deadline comes, what waits here is left out; a thread that decodes already can't be stopped.
        return await loop.run_in_executor(executor, self._decode, content)

    def _decode(self, content: bytes) -> Tensor:
        return self.loaded.preprocess([open_image(io.BytesIO(content), self.loaded.channels)])

    def close(self) -> None:
        """End the threads, as soon as they have decoded what they are at."""
        for executor in (self._small, self._large):
            executor.shutdown(wait=False, cancel_futures=True)


def _is_large(content: bytes) -> bool:
    """Whether a picture takes long to decode; raises ValueError if it would take too long.

    The header says it, so that nothing is decoded for that.
    """
    with open_file(io.BytesIO(content)) as image:
        pixels = image.width * image.height
        is_quick = image.format in QUICK_FORMATS
        most = MOST_PIXELS if is_quick else MOST_SLOW_PIXELS
        if pixels > most:
            raise ValueError(f"{pixels:,} pixels are more than {most:,}, the most that a {image.format} may have")
    return pixels > LARGE_PIXELS or not is_quick
