"""How messages write numbers with what they count, "1 batch" and "2 batches", and lists of names."""

from collections.abc import Sequence


def counted(number: float, noun: str) -> str:
    """A number and what it counts, such as "1 class", "1,250 updates" or "0.5 epochs"; a fraction has three digits."""
    text = f"{number:,.0f}" if number == round(number) else f"{number:.3g}"
    return f"{text} {form(number, noun)}"


def form(number: object, noun: str) -> str:
    """The noun as it stands after a number: plurals end in "es" after "s" or "tch", such as "batches", else in "s"."""
    if number == 1:
        return noun
    return f"{noun}es" if noun.endswith(("s", "tch")) else f"{noun}s"


def listed(names: Sequence[str], most: int = 10) -> str:
    """Some names, of which all after the first ``most`` are counted."""
    text = ", ".join(names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text
