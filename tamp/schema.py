"""Reading JSON: what a file says is checked against what it should say, in types and ranges, before anything uses it."""

import json
import math
import os
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from tamp.errors import UserError

WORDS = {str: "a text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}


class Range(NamedTuple):
    """A number that a file may hold, bounds included; a whole one if the lower bound is an ``int``."""

    low: float
    high: float = math.inf


def read(path: str | Path, wanted: Any, what: str, hint: str) -> Any:
    """Read a JSON file and check what it holds.

    Args:
        path: the file.
        wanted: see :func:`misfit`.
        what: what the file should be, such as ``"a plan"``.
        hint: what to do if it is something else.

    Raises:
        UserError: if it cannot be read, is not JSON, or does not hold what it should: the message says where.
    """
    try:
        found = json.loads(text_of(path))
        json.dumps(found, ensure_ascii=False).encode()  # halves of a character, which nothing can print
        fault = misfit(found, wanted)
    except OSError as error:
        raise UserError(f"Cannot read {path!s:.200} as {what}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        fault = str(error)
    if fault:
        raise UserError(f"{path!s:.200} is not {what}: {fault}. {hint}")
    return found


def text_of(path: str | Path) -> str:
    """Read a text in UTF-8, or in UTF-16 or UTF-32 as its first bytes say, which some Windows programs write."""
    raw = Path(os.path.expanduser(path)).read_bytes()
    return raw.decode(json.detect_encoding(raw)).replace("\r\n", "\n").replace("\r", "\n")


def misfit(found: Any, wanted: Any, where: str = "it") -> str:
    """Say what does not fit in something read from JSON; return an empty text if everything does.

    Args:
        found: what was read.
        wanted: a type, ``float`` for any number; a :class:`Range`; ``[each]`` for a list; ``{key: value}`` for an object
            that may have other keys too, a key ``"name?"`` being optional and ``...`` every other; or a tuple of these.
        where: what the sentence calls it.
    """
    if isinstance(wanted, tuple) and not isinstance(wanted, Range):
        faults = [misfit(found, each, where) for each in wanted]
        return "" if "" in faults else faults[-1]
    kind = wanted if isinstance(wanted, type) else type(wanted)
    if kind in (Range, float):
        whole = kind is Range and isinstance(wanted.low, int)
        low, high = wanted if kind is Range else (-math.inf, math.inf)
        number = isinstance(found, int if whole else int | float) and not isinstance(found, bool)
        if number and (low <= found <= high and abs(found) < 2**63 or (kind is float and found != found)):
            return ""
        bounds = f" of at least {low}" * (low > -math.inf) + f" and at most {high}" * (high < math.inf)
        return f"{where} is {reprlib.repr(found)}, not a {'whole ' * whole}number{bounds}"
    if not isinstance(found, kind):
        return f"{where} is {reprlib.repr(found)}, not {WORDS[kind]}"
    parts = []
    if isinstance(wanted, list):
        parts = [(place, each, wanted[0]) for place, each in enumerate(found)]
    elif isinstance(wanted, dict):
        if missing := [key for key in wanted if key is not ... and key[-1] != "?" and key not in found]:
            return f"{where} has no {missing[0]!r}"
        other = wanted.get(..., object)
        parts = [(key, each, wanted.get(key, wanted.get(f"{key}?", other))) for key, each in found.items()]
    return next(filter(None, (misfit(each, fits, f"{where}[{key!r}]") for key, each, fits in parts)), "")
