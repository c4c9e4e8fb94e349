"""Recipes that build on another one in their own directory, by `extends = "base.toml"`."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from effopd.errors import ConfigError

EXTENDS = "extends"


def base_path(recipe: Path, raw: Mapping[str, Any]) -> Path | None:
    """Where the recipe is that another one builds on; None where it stands alone.

    Args:
        recipe: The recipe that may extend one.
        raw: Its content.

    Returns:
        A path in the directory of `recipe`.

    Raises:
        ConfigError: `extends` is no name of a TOML file in that directory.
    """
    if EXTENDS not in raw:
        return None
    name = raw[EXTENDS]
    if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".toml"):
        raise ConfigError(
            f"{recipe}: extends must name a TOML file in the same directory, got {name!r:.80}"
        )
    return recipe.parent / name


def check_extends_nothing(recipe: Path, raw: Mapping[str, Any]) -> None:
    """Refuses a second level: what a run does should be read from two files at most.

    Raises:
        ConfigError: `recipe` extends another one.
    """
    if EXTENDS in raw:
        raise ConfigError(
            f"{recipe} is extended and cannot itself extend {raw[EXTENDS]!r:.80}: copy its "
            "settings into your recipe, extends included, or give yours on the command line"
        )
