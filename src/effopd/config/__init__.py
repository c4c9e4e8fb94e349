"""The settings of a run: TOML in, frozen dataclasses out. The only package that knows pydantic."""

from effopd.config.reading import differences, load_config, make_config, to_toml
from effopd.config.root import RunConfig

__all__ = ["RunConfig", "differences", "load_config", "make_config", "to_toml"]
