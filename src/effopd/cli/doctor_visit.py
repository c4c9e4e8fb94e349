"""What the doctor looks at, and what it says about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from effopd.cli.shipped_shapes import model_config
from effopd.errors import EffopdError
from effopd.models.counted import model_shape
from effopd.models.footprint import Gpu
from effopd.models.hub import fetch
from effopd.models.loading import ModelSettings, load_tokenizer
from effopd.models.shapes import ModelShape
from effopd.records import display_text
from effopd.training.config import Config

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    check: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return display_text(f"{self.level:7}  {self.check}: {self.text}{remedy}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that the settings name, as far as it can be seen."""

    name: str
    settings: ModelSettings
    recipe: Path
    offline: bool

    @cached_property
    def directory(self) -> Path | None:
        """Its directory, None if it is away; configuration and tokenizer are fetched if need be."""
        path = Path(self.settings.path).expanduser()
        if path.is_dir():
            return path
        if self.offline or self.settings.path.startswith((".", "/", "~")):
            return None
        return fetch(self.settings.path, self.settings.revision, weights=False)

    @cached_property
    def content(self) -> tuple[Mapping[str, Any], Path]:
        """Content of config.json, and where it is from.

        Raises:
            ConfigError: It is neither on this disk nor shipped beside the recipe.
        """
        path = self.settings.path if self.directory is None else str(self.directory)
        return model_config(path, self.recipe)

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes, of any architecture that transformers knows."""
        return model_shape(*self.content)

    @property
    def known_shape(self) -> ModelShape | None:
        """Its sizes; None where nothing says them, which the check of the models is about."""
        try:
            return self.shape
        except EffopdError:
            return None

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; None where it is not on this disk."""
        return None if self.directory is None else load_tokenizer(self.settings)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A run to look at."""

    config: Config
    recipe: Path
    offline: bool
    gpu: Gpu | None

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models by name."""
        return {
            name: Model(name=name, settings=each, recipe=self.recipe, offline=self.offline)
            for name, each in self._named()
        }

    def _named(self) -> Iterator[tuple[str, ModelSettings]]:
        for name in ("student", "teacher", "reference"):
            settings = getattr(self.config, name)
            if settings is not None:
                yield name, settings
        yield from ((f"teachers.{name}", each) for name, each in self.config.teachers.items())
