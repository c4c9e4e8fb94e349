"""The average of a student's weights over its steps, at which it is evaluated and saved."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError
from effopd.models.checkpoints import restore_


@dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """The weights that are evaluated and saved are an average of those after each step.

    Training goes on from the last point, which writes the answers that it learns from.

    Attributes:
        decay: Share of an exponential moving average that is kept at each step, in [0, 1); it
            starts at the untrained student. 0 is none.
        window: Last steps whose weights are averaged equally; 0 is none.

    Source: LAWA, arXiv 2209.14981 (window) and 2306.03241.
    """

    decay: float = 0.0
    window: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"average.decay must be in [0, 1), got {self.decay}")
        if self.window < 0 or self.window == 1:
            raise ConfigError(
                f"average.window must be 0 (no average) or at least 2 steps, got {self.window}"
            )
        if self.decay and self.window:
            raise ConfigError("average has decay or window: set one of them")

    @property
    def is_active(self) -> bool:
        """Whether there is an average."""
        return self.decay > 0 or self.window > 0


class WeightAverage:
    """The average of named tensors; an exponential one is kept in float32 or wider."""

    def __init__(self, moved: Mapping[str, Tensor], settings: AverageSettings) -> None:
        self._moved, self._settings = moved, settings
        self._points: list[dict[str, Tensor]] = [] if settings.window else [self._copied(wide=True)]

    def _copied(self, *, wide: bool) -> dict[str, Tensor]:
        dtypes = {
            n: torch.promote_types(t.dtype, torch.float32) if wide else t.dtype
            for n, t in self._moved.items()
        }
        return {n: t.detach().to(dtypes[n], copy=True) for n, t in self._moved.items()}

    @torch.no_grad()
    def update_(self) -> None:
        """Takes the present weights in."""
        if self._settings.window:
            kept = self._points[-self._settings.window + 1 :]
            self._points = [*kept, self._copied(wide=False)]
            return
        for name, average in self._points[0].items():
            average.lerp_(self._moved[name].to(average), 1.0 - self._settings.decay)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """The average by name; empty before the first step of a window."""
        if not self._settings.window:
            return self._points[0]
        return {
            name: torch.stack([point[name].float() for point in self._points]).mean(0)
            for name in (self._points[0] if self._points else ())
        }

    def state(self) -> dict[str, Tensor]:
        """What it is made of, by `PLACE/NAME`; references."""
        return {f"{i}/{n}": t for i, point in enumerate(self._points) for n, t in point.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        places = {int(key.partition("/")[0]) for key in tensors}
        if places != set(range(len(places))):
            raise CheckpointError("the saved average lacks some of its points")
        wide = not self._settings.window
        self._points = [self._copied(wide=wide) for _ in places]
        restore_(self.state(), tensors, "average")
