"""What `layershuffle check-gpu` finds out: does the package work on this machine's GPU, and how fast is it?"""

# Importing these modules registers their checks.
from layershuffle.gpu_check import correct, devices, fast, real, waits  # noqa: F401
