"""Where a user's own code comes in: a name of params.yaml is an entry of a table, or the dotted path of a module."""

import importlib
from collections.abc import Mapping
from typing import Any


def find(name: Any, table: Mapping[str, str], what: str, attribute: str) -> Any:
    """The object that a name stands for.

    name: a key of `table`, whose values are dotted paths; or a dotted path itself, of a module in the working folder or
        the environment, which defines `attribute`, or of another object in such a module.
    what: what errors call the name, such as `feedback.sources.mine.kind`.
    Raises ValueError naming what was found and what is known.
    """
    known = f"known are {', '.join(table)}, and dotted paths such as my_lab.judges.tracker"
    if not isinstance(name, str) or (name not in table and "." not in name):
        raise ValueError(f"{what} is {name!r}; {known}")
    path = table.get(name, name)
    try:
        try:
            return getattr(importlib.import_module(path), attribute)
        except ModuleNotFoundError as error:
            module, _, last = path.rpartition(".")
            if error.name != path or not module:
                raise
            return getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} is {name!r}, which cannot be imported ({error}); {known}") from error


def offered(name: str, table: Mapping[str, str], attribute: str) -> Any:
    """What the module that `find` takes a name for may define besides; None where it does not, or is no module."""
    try:
        return getattr(importlib.import_module(table.get(name, name)), attribute, None)
    except ModuleNotFoundError:
        return None
