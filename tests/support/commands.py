"""The commands of the command line, those of groups among them."""

from typing import Any

import typer
from typer.core import TyperGroup

from effopd.cli.main import app


def commands() -> dict[str, Any]:
    """Name as it is typed -> command: `train`, `data preview`."""
    return _flat(typer.main.get_group(app), "")


def _flat(group: TyperGroup, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= _flat(command, f"{prefix}{name} ")
        elif not command.hidden:
            found[prefix + name] = command
    return found
