"""Tools that a user names: a Python file with a list, or the small world of orders."""

import runpy
from pathlib import Path

from counterpoint.data.tasks.tool_world import OrderWorld
from counterpoint.data.tools import Tool
from counterpoint.errors import UserError

ORDERS = "orders"


def open_tools(name: str) -> tuple[Tool, ...]:
    """Return tools.

    Args:
        name: "orders", a Python file that defines a list `TOOLS`, or empty for none. The file is
            run.

    Raises:
        UserError: There is no such file, it fails, or it defines no tools.
    """
    if not name:
        return ()
    if name == ORDERS:
        return OrderWorld().tools()
    if not Path(name).is_file():
        raise UserError(f'`--tools` must be "{ORDERS}" or a Python file: got {name!r}.')
    try:
        found = runpy.run_path(name).get("TOOLS")
    except Exception as error:
        raise UserError(f"{name} must run: {type(error).__name__}: {error}.") from error
    if not isinstance(found, list | tuple) or not all(isinstance(one, Tool) for one in found):
        raise UserError(f"{name} must define `TOOLS`, a list of counterpoint.data.tools.Tool.")
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise UserError(f"The tools of {name} must have different names: got {', '.join(names)}.")
    return tuple(found)
