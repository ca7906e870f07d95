"""Finds the pictures below folders: each file once, without going in circles."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from layershuffle.data.decoding import why_left_out


class PictureWalk:
    """Walks folders, one after the other, and finds each picture once, however many links lead to it.

    Links out of the folders are followed. Left out are links that lead back, links into folders that belong to
    something else, and whatever is no regular file: reading a pipe would never end.

    Args:
        owners: folders, and what each belongs to: the class folders of a data set. None of them is read on the way
            through another.

    Attributes:
        left_out: path and reason of the files and folders that are left out.
        path_of: the path of what has been read, by its real path: all folders, and all files where there are links.
    """

    def __init__(self, owners: Mapping[str, str] | None = None) -> None:
        self.left_out: list[tuple[str, str]] = []
        self._owners: dict[str, str] = {}  # by real path
        self._holders: set[str] = set()  # the real paths of the folders that hold these
        # Paths are compared by where they really lead, because links can give a folder any name.
        for folder, owner in (owners or {}).items():
            real = os.path.realpath(folder)
            self._owners[real] = owner
            self._holders.update(map(str, Path(real).parents))
        self.path_of: dict[str, str] = {}

    def pictures(self, top: str) -> list[str]:
        """The paths of the pictures below the folder ``top``, sorted by their folders and then by their names."""
        real_top = os.path.realpath(top)
        self.path_of[real_top] = top
        plain: list[os.DirEntry] = []
        linked: list[os.DirEntry] = []
        folders = [top]
        linked_folders: list[str] = []
        has_links = False
        # What is there itself comes before what links lead to, so that the links are what is left out.
        while folders or linked_folders:
            folder = folders.pop() if folders else linked_folders.pop(0)
            for entry in self._entries(folder):
                is_link = entry.is_symlink()
                has_links |= is_link
                if is_folder(entry):
                    if self._may_enter(entry, real_top):
                        to_visit = linked_folders if is_link else folders
                        to_visit.append(entry.path)
                elif is_link:
                    linked.append(entry)
                else:
                    plain.append(entry)

        paths = self._plain_pictures(plain, top, may_be_linked=has_links)
        paths += self._linked_pictures(linked, top, real_top)
        return sorted(paths, key=os.path.split)

    def _entries(self, folder: str) -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.left_out.append((folder, f"can't be read: {error.strerror}"))
            return []

    def _may_enter(self, folder: os.DirEntry, real_top: str) -> bool:
        """Whether to read a folder, which then counts as read."""
        real = os.path.realpath(folder)
        reason = self._why_not_ours(real, real_top)
        if folder.name.startswith("."):
            reason = "hidden"
        elif reason is None and real in self.path_of:
            reason = f"the same folder as {self.path_of[real]}"
        if reason is not None:
            self.left_out.append((folder.path, reason))
            return False
        self.path_of[real] = folder.path
        return True

    def _why_not_ours(self, real: str, real_top: str) -> str | None:
        """Why a real path isn't read on the way through ``real_top``: it is in, or holds, somebody else's folder."""
        # From the path upwards: the nearest folder that belongs to somebody decides.
        for folder in (real, *map(str, Path(real).parents)):
            if folder == real_top:
                return None
            if folder in self._owners:
                return f"leads to {self._owners[folder]}"
        if real in self._holders:
            return "leads to the folder that holds the classes"
        if os.path.join(real_top, "").startswith(os.path.join(real, "")):
            return "leads to a folder that holds it"
        return None

    def _plain_pictures(self, files: list[os.DirEntry], top: str, may_be_linked: bool) -> list[str]:
        """The paths of the pictures among files that are no links."""
        paths = []
        for file in files:
            if self._is_picture(file, top):
                paths.append(file.path)
                # Where there are no links, a million paths needn't be remembered.
                if may_be_linked:
                    self.path_of[os.path.realpath(file)] = file.path
        return paths

    def _linked_pictures(self, links: list[os.DirEntry], top: str, real_top: str) -> list[str]:
        """The paths of the links that lead to pictures of which none has been read."""
        # Of several links to one picture the first by name is read, whatever the sequence on the disk.
        paths = []
        for link in sorted(links, key=lambda link: link.path):
            real = os.path.realpath(link)
            reason = self._why_not_ours(real, real_top)
            if reason is None and real in self.path_of:
                reason = f"the same file as {self.path_of[real]}"
            if reason is not None:
                self.left_out.append((link.path, reason))
            elif self._is_picture(link, top):
                paths.append(link.path)
                self.path_of[real] = link.path
        return paths

    def _is_picture(self, file: os.DirEntry, top: str) -> bool:
        """Whether a file is a picture, perhaps a broken one. If not, it is noted."""
        # The kind of file comes first: opening a pipe to see what it holds would wait for ever.
        reason = None
        if not file.is_file(follow_symlinks=False):
            reason = why_not_regular(file.path)
        reason = reason or why_left_out(file.path, top)
        if reason is not None:
            self.left_out.append((file.path, reason))
        return reason is None


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def why_not_regular(path: str) -> str | None:
    """Why a file can't hold a picture whatever its name is; None if it can, or isn't there."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # Reading it will say what is wrong.
        return None
    return None if stat.S_ISREG(mode) else "no regular file"
