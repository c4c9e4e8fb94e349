"""The command line: what every command shares."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from effopd.errors import ConfigError, EffopdError
from effopd.records import display_text

Recipe = Annotated[Path, typer.Argument(help="Recipe, a TOML file.", metavar="RUN.toml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, for example optimizer.lr=3e-4.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """Expected errors become one message and status 2 (settings) or 1 (everything else)."""
    try:
        yield
    except (EffopdError, OSError) as error:
        if debug:
            raise
        print(f"error: {display_text(str(error))}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
