"""Finds config files by name: those of the user's own ``configs/`` folder first, then those of the package."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from layershuffle.errors import UserError


def packaged_in(package: Path) -> Path:
    """The folder of the package's configs; in a clone this is the folder ``configs`` at the top."""
    folder = package / "configs"
    # Git writes a link as a small file where it may not make links, as on Windows.
    if folder.is_file():
        folder = package.parent / "configs"
    return folder.resolve()


PACKAGED = packaged_in(Path(__file__).parent)
OWN = Path("configs")
"""The user's own, beside the working folder."""


def find(name: str, experiment: bool = False) -> Path:
    """The config file that a user calls ``name``; raises UserError if there is none, or there are several.

    Args:
        name: a path that ends in .yaml or .yml, which is returned as it is, or a name such as ``vit_b16`` or
            ``model/vit_b16``, which is looked for in the user's own folder first.
        experiment: whether to look for an experiment; otherwise for a piece of a run.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    for folder in (OWN, PACKAGED):
        files = listed(folder, experiment)
        # A full name is no ambiguity, even if it is also the end of a longer one.
        matching = [full for full in files if full == name] or [full for full in files if full.endswith(f"/{name}")]
        if len(matching) > 1:
            raise UserError(f"there are several configs named {name}: choose from {', '.join(matching)}")
        if matching:
            return files[matching[0]]
    raise unknown(name, experiment)


def unknown(name: str, experiment: bool = False) -> UserError:
    """The error that there is no config, or experiment, called ``name``; it suggests the nearest."""
    if Path(name).is_file():
        return UserError(f"{name} is not a YAML file: its name should end in .yaml")
    choices = known(experiment)
    names = sorted({path.stem for path in choices.values()})
    if experiment:
        suggestion = nearest(name, names)
        return UserError(f"there is no experiment {name}{suggestion}: give a YAML file, or one of {', '.join(names)}")
    return UserError(f"there is no config named {name}{nearest(name, [*names, *choices])}: see layershuffle list")


def known(experiment: bool = False) -> dict[str, Path]:
    """All configs, or all experiments, by full name. The user's own come first, and replace those of the package."""
    own = listed(OWN, experiment)
    # The first one puts the user's own first, and the last one lets them win.
    return own | listed(PACKAGED, experiment) | own


def listed(folder: Path, experiment: bool = False) -> dict[str, Path]:
    """The configs below ``folder`` by full name, such as ``model/vit_b16``; sweeps are left out."""
    # Sweeps are W&B's, which reads them itself.
    paths = [path for path in sorted(folder.rglob("*.yaml")) if path.is_file() and not path.stem.startswith("sweep")]
    configs = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name.startswith("experiment/") == experiment:
            configs[name] = path
    return configs


def nearest(word: str, choices: Iterable[str]) -> str:
    """A suggestion to append to an error message: the choice that is most like ``word``, if any is."""
    # The dashes of options are left out, because they make any two short options alike.
    by_bare_name = {choice.lstrip("-"): choice for choice in choices}
    close = get_close_matches(word.lstrip("-"), list(by_bare_name), n=1)
    return f" (did you mean {by_bare_name[close[0]]}?)" if close else ""
