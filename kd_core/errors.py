"""The exception type for mistakes that the user can fix, and helpers for writing messages."""

import argparse
import difflib
from collections.abc import Iterable, Iterator
from typing import NoReturn


class UserError(Exception):
    """Bad input: printed as one clear message, without a traceback; the script exits with status 2.

    The message names the file, key and value, and says what is allowed.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class NonFinite(UserError):
    """A loss, gradient, metric or weight became NaN or infinite."""


def printable(text: str) -> str:
    """`text` with control characters escaped: names in untrusted files may hold terminal escape sequences."""
    if text.isprintable():  # most text, which may be long: a page's pictures
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def first_line(error: BaseException, limit: int | None = None) -> str:
    """The first line of an error's message, at most `limit` characters; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what caused it, and so on, each once: an error can be its own cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


USUAL_NAMES = {
    "lr": "learning_rate",
    "epochs": "max_epochs",
    "wd": "weight_decay",
    "workers": "num_workers",
    "T": "temperature",
}


def near_names(word: object, known: Iterable[object], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most `most` of `known` that resemble `word`, best first (`cutoff` as in difflib).

    A usual abbreviation (`lr`) matches only the name it stands for; a prefix (`batch`) matches the names it begins.
    """
    given, names = str(word), [str(name) for name in known]
    if USUAL_NAMES.get(given) in names:
        return [USUAL_NAMES[given]]
    begun = [name for name in names if name.startswith(f"{given}_")]
    return begun[:most] or difflib.get_close_matches(given, names, n=most, cutoff=cutoff)


def did_you_mean(word: object, known: Iterable[object], *, cutoff: float = 0.6) -> str:
    """", did you mean 'NAME'?" with the nearest of `known`; empty if none is near (see `near_names`)."""
    return suggestion([repr(name) for name in near_names(word, known, cutoff=cutoff)])


def suggestion(names: Iterable[str]) -> str:
    """", did you mean A or B?"; empty without names."""
    shown = " or ".join(names)
    return f", did you mean {shown}?" if shown else ""


class CommandLine(argparse.ArgumentParser):
    """An argument parser that raises UserError for mistakes, as the settings do."""

    def __init__(self, name: str) -> None:
        super().__init__(name, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all")
