"""From the name of a kind and values of its settings to interventions."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property
from typing import Any, Literal

from effopd.analysis.interventions import (
    BlockSwap,
    EmbeddingReplacement,
    Intervention,
    NormScaling,
    SlidingWindow,
    WholeScaling,
    sliding_windows,
)
from effopd.analysis.modules import layer_count, module_norms, update_norm
from effopd.analysis.ranks import BottomRank, TopRank
from effopd.config.reading import read
from effopd.errors import ConfigError
from effopd.models.layout import Heads
from effopd.models.updates import Update


@dataclass(frozen=True, kw_only=True)
class Source:
    """The updates that interventions are made from; `other` is of a second tuned model."""

    update: Update
    other: Update | None = None
    heads: Heads | None = None

    @property
    def donor(self) -> Update:
        """The second update, of a kind that requires one."""
        assert self.other is not None
        return self.other

    @cached_property
    def donor_norms(self) -> dict[str, float]:
        """Norms of its modules."""
        return module_norms(self.donor, self.heads)


Values = Mapping[str, Any]
Build = Callable[[Source, Values], list[Intervention]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of intervention: its settings' types, and what builds it of one value for each.

    A setting that was not given is absent; `other` is about a second tuned model.
    """

    settings: Mapping[str, Any]
    build: Build
    other: Literal["required", "allowed", "refused"] = "refused"


def interventions(
    kind: str, settings: Mapping[str, Any] | Sequence[str], source: Source
) -> list[Intervention]:
    """The interventions of one kind for all combinations of the values given.

    Values are given as `{"scale": [0.5, 1]}` or `["scale=0.5,1"]`.
    """
    if kind not in KINDS:
        raise ConfigError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    chosen = KINDS[kind]
    if chosen.other == "required" and source.other is None:
        raise ConfigError(f"--kind {kind} takes norms or tensors of a second model: give --other")
    if chosen.other == "refused" and source.other is not None:
        raise ConfigError(f"--kind {kind} takes nothing from a second model: leave out --other")
    texts: list[tuple[str, str]] = []  # name, one value; "" for text that names nothing
    if isinstance(settings, Mapping):
        for name, values in settings.items():
            several = values if isinstance(values, list | tuple | range) else [values]
            texts += [(name, str(value)) for value in several]
    else:
        for text in settings:
            name, equals, joined = text.partition("=")
            texts += [(name if equals else "", value) for value in (joined or text).split(",")]
    fields = [(name, hint | None, field(default=None)) for name, hint in chosen.settings.items()]
    cls = make_dataclass(kind, fields, frozen=True)
    given: dict[str, list[Any]] = {}
    for name, value in texts:
        if name not in chosen.settings:
            known = ", ".join(f"{each}=..." for each in chosen.settings)
            raise ConfigError(f"--kind {kind} has the settings {known}, got {name or value!r}")
        given.setdefault(name, []).append(getattr(read(cls, {}, [f"{name}={value.strip()}"]), name))
    return [
        each
        for values in itertools.product(*given.values())
        for each in chosen.build(source, dict(zip(given, values, strict=True)))
    ]


def _scale(source: Source, values: Values) -> list[Intervention]:
    targets = [name for name in ("scale", "norm") if name in values]
    if len(targets) + (source.other is not None) != 1:
        raise ConfigError("--kind scale takes one of scale=..., norm=... and --other")
    if "scale" in values:
        return [WholeScaling(scale=values["scale"])]
    norm = values["norm"] if source.other is None else update_norm(source.donor)
    return [WholeScaling.to_norm(source.update, norm)]


def _norm(source: Source, values: Values) -> list[Intervention]:
    final = update_norm(source.donor) if values.get("per") == "whole" else source.donor_norms
    return [NormScaling(final=final, beta=values.get("beta", 1.0))]


def _window(source: Source, values: Values) -> list[Intervention]:
    if "centre" not in values:
        return list(sliding_windows(layer_count(source.update), **values))
    if "only_whole" in values:
        raise ConfigError("only_whole chooses among all centres: leave out centre=...")
    return [SlidingWindow(**values)]


def _top_rank(source: Source, values: Values) -> list[Intervention]:
    if "norm" in values and source.other is not None:
        raise ConfigError("--kind top_rank takes norm=... or the norms of --other, not both")
    if source.other is not None:
        values = {**values, "norm": source.donor_norms}
    return [TopRank(**_with_share(values))]


def _with_share(values: Values) -> Values:
    if "share" not in values:
        raise ConfigError("give the share of the rank that is kept: share=0.01 is 1%")
    return values


KINDS: Mapping[str, Kind] = {
    "scale": Kind(settings={"scale": float, "norm": float}, build=_scale, other="allowed"),
    "norm": Kind(
        settings={"beta": float, "per": Literal["module", "whole"]}, build=_norm, other="required"
    ),
    "embeddings": Kind(
        settings={"part": str, "into": str},
        build=lambda source, values: [EmbeddingReplacement(**values)],
    ),
    "window": Kind(
        settings={"centre": int, "block": str, "half_width": int, "only_whole": bool},
        build=_window,
    ),
    "top_rank": Kind(
        settings={"share": float, "norm": float, "others": str}, build=_top_rank, other="allowed"
    ),
    "bottom_rank": Kind(
        settings={"share": float, "others": str},
        build=lambda source, values: [BottomRank(**_with_share(values))],
    ),
    "swap": Kind(
        settings={"blocks": str},
        build=lambda source, values: [
            BlockSwap(donor=source.donor, blocks=tuple(values.get("blocks", "mlp").split("+")))
        ],
        other="required",
    ),
}
"""Name on the command line -> how it is made."""
