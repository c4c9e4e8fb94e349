"""The config.json of a model, from its own directory or as shipped beside a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError
from effopd.models.weights import read_config, read_object

SHIPPED = "shapes.json"
"""Beside a recipe: path or repository of a model -> what counts of its config.json."""


def model_config(path: str, recipe: Path) -> tuple[Mapping[str, Any], Path]:
    """What config.json says about a model, without the network.

    Args:
        path: The model as the settings name it.
        recipe: Whose directory may hold `SHIPPED`.

    Returns:
        The content, and the file it is from.

    Raises:
        ConfigError: The model is no directory on this disk, and its shape is not shipped.
    """
    if Path(path).is_dir():
        return read_config(Path(path)), Path(path) / "config.json"
    shipped = recipe.parent / SHIPPED
    content = read_object(shipped).get(path) if shipped.is_file() else None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} is no directory on this disk, and {shipped} does not describe it: download "
            "the model, or add what its config.json says"
        )
    return content, shipped
