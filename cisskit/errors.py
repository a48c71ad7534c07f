"""Errors a person can act on."""

from collections.abc import Iterable
from difflib import get_close_matches


class KitError(ValueError):
    """A mistake in the input that the kit can explain: what is wrong, where, and what to do next.

    The command line and notebooks print its message alone; anything else is a bug and keeps its traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [f"KitError: {self}"]


def unknown(kind: str, name: object, options: Iterable[str]) -> KitError:
    """A ``KitError`` for a name that is not among ``options``: the nearest one first, then all of them."""
    options = list(options)
    near = get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return KitError(f"unknown {kind} {name!r}.{hint} Available: {', '.join(options) or 'none'}.")


def first_ten(names: Iterable[str]) -> str:
    """``"a, b, c and 17 more (20 in all)"``: enough names to find the fault, and the count."""
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more} ({len(names)} in all)"
