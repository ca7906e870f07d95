"""Notes what the host asks of the fake GPU, and where it waits for it."""

import ctypes
import re
import traceback
import warnings
from dataclasses import asdict, dataclass, field

import torch
from fake_gpu.library import NAME

OUTSIDE = re.compile(r"/torch/(?!optim/swa)|/warnings\.py|/fake_gpu/watch\.py")
"""Files that are left out of the place where the host waits: the users of torch say more."""


@dataclass
class Events:
    """What happened while a run was watched.

    Attributes:
        waits: how often the host waited for the device, by the place: the three innermost frames.
        pageable: copies between the host and the device for which the driver first copies to pinned memory, or waits.
        float32: matrix products in float32.
        kernels: kernels and matrix products.
        error: what has ended the run, if anything.
    """

    waits: dict[str, int] = field(default_factory=dict)
    pageable: int = 0
    float32: int = 0
    kernels: int = 0
    error: str = ""


class Notes:
    """What the host asks of the fake GPU between ``begin`` and ``end``."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(NAME)
        self._library.fake_get_note.restype = ctypes.c_char_p
        self._library.fake_get_note.argtypes = [ctypes.c_size_t]

    def begin(self) -> None:
        """Begin to take notes."""
        self._library.fake_begin_notes()

    def end(self) -> list[str]:
        """Stop taking notes, and return them."""
        self._library.fake_end_notes()
        return [self._library.fake_get_note(index).decode() for index in range(self._library.fake_count_notes())]


class Watch:
    """Watches between ``begin`` and ``end``, as often as one likes, and adds up the events."""

    def __init__(self) -> None:
        self.events = Events()
        self._notes = Notes()
        self._caught = warnings.catch_warnings()
        self._is_watching = False

    def begin(self) -> None:
        """Begin to watch, unless it has begun."""
        if self._is_watching:
            return
        self._is_watching = True
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._note_wait  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        self._notes.begin()

    def end(self) -> None:
        """Stop watching, and count what was noted."""
        if not self._is_watching:
            return
        self._is_watching = False
        notes = self._notes.end()
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        for note in notes:
            self.events.pageable += note.startswith("pageable copy")
            self.events.float32 += note == "product in float32"
            self.events.kernels += note.startswith(("kernel", "product"))
            # torch warns of its own waits, but not of those that a program asks for.
            if note == "wait for the device":
                self._count_wait("torch.cuda.synchronize")

    def as_dict(self) -> dict[str, object]:
        """The events as plain values."""
        return asdict(self.events)

    def _note_wait(self, message: object, *_: object, **__: object) -> None:
        """Take a warning of torch's, with the place from which torch was called."""
        if "synchronizing CUDA operation" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if not OUTSIDE.search(frame.filename)]
        places = [f"{re.sub('.*/', '', frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames[-3:])]
        self._count_wait(" < ".join(places))

    def _count_wait(self, place: str) -> None:
        self.events.waits[place] = self.events.waits.get(place, 0) + 1
