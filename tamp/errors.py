"""Errors that a user can mend: one sentence that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class UserError(ValueError):
    """A wrong argument, file or model; the message says what was wrong and what to do about it."""


def whole(value: Any) -> int | None:
    """Return a whole number of any type, up to 63 bits, as Python's own; None for everything else, such as fractions."""
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(value) < 2**63:
        return None
    return int(value) if isinstance(value, Integral) or value == int(value) else None


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """Build the error for a name that does not exist: the nearest one and all there are.

    Args:
        kind: what the name should have named, such as ``"preset"``.
        name: the name that was given.
        known: the names that exist.
        hint: a closing sentence, such as what else would be accepted.
    """
    known, name = list(known), str(name)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    shown = [*known[:20], f"and {len(known) - 20} more"] if len(known) > 20 else known
    return UserError(f"There is no {kind} {name!r}.{guess} There are: {', '.join(shown)}.{' ' + hint if hint else ''}")
