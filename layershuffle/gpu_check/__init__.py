"""What `layershuffle check-gpu` finds out: does the package work on this machine's GPU, and how fast is it?"""

from layershuffle.gpu_check import correct, fast, real  # noqa: F401 (they put their checks in CHECKS)
