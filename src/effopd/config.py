"""The root of a run's settings: TOML in, frozen dataclasses out. The only file that knows pydantic.

Every section is the settings object of the thing it configures; nothing is described twice.
"""

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from effopd.core.extrapolator import Search
from effopd.demo.world import TinyWorld
from effopd.errors import ConfigError
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.models.loading import ModelSettings
from effopd.objectives import ExOPD, FullVocabularyKL, SampledTokenOPD
from effopd.rollouts.engine import Sampling
from effopd.rollouts.prompts import PromptTemplate
from effopd.tasks.files import JsonlTask
from effopd.trainers.settings import (
    CheckpointSettings,
    EvaluationSettings,
    LoopSettings,
    OptimizerSettings,
    TrainSettings,
)

Raw = dict[str, Any]


class RunConfig(BaseModel):
    """Everything `effopd train` needs to know.

    Attributes:
        label: Name in reports; the method's name by default.
        method: "opd" trains without a search, "effopd" with one.
        preset: Where `search` and `validation` start from: "default" is what measured best,
            "paper" the paper to the letter, "release" the released code (docs/presets.md).
        seed: Seed of prompts, sampling and validation sets.
        device: PyTorch device of the student.
        teacher_device: Device of the teacher; the student's by default.
        threads: CPU threads of PyTorch; results are reproducible for a fixed number.
        student: Model to train; the tiny world brings its own.
        teacher: Model that scores; the tiny world brings its own.
        reference: ExOPD's reference; the untrained student by default.
        task: Problems.
        prompt: From problem to prompt.
        sampling: How the student samples.
        objective: What is minimised.
        train: How much.
        optimizer: AdamW and its learning rate.
        evaluation: Held-out evaluation.
        checkpoint: When to save.
        search: The search.
        validation: How the search scores candidates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = ""
    method: Literal["opd", "effopd"] = "effopd"
    preset: Literal["default", "paper", "release"] = "default"
    seed: int = 0
    device: str = "cpu"
    teacher_device: str | None = None
    threads: int = Field(default=1, ge=1)
    student: ModelSettings | None = None
    teacher: ModelSettings | None = None
    reference: ModelSettings | None = None
    task: Annotated[TinyWorld | JsonlTask, Field(discriminator="type")] = TinyWorld()
    prompt: PromptTemplate = PromptTemplate()
    sampling: Sampling = Sampling(max_new_tokens=32)
    objective: Annotated[
        SampledTokenOPD | ExOPD | FullVocabularyKL, Field(discriminator="type")
    ] = SampledTokenOPD()
    train: TrainSettings = TrainSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    search: Search = Search()
    validation: Annotated[AccuracyValidation | TeacherKLValidation, Field(discriminator="type")] = (
        TeacherKLValidation()
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> "RunConfig":
        if self.task.type != "tiny_world" and (self.student is None or self.teacher is None):
            raise ValueError("this task needs student.path and teacher.path")
        if self.sampling.temperature != 1.0:
            raise ValueError(
                "sampling.temperature must be 1: on-policy objectives need samples of the policy "
                f"itself, got {self.sampling.temperature}"
            )
        return self

    @property
    def name(self) -> str:
        """The label, or a name made from method and preset."""
        plain = self.method if self.preset == "default" or self.method == "opd" else self.preset
        return self.label or plain

    @property
    def loop(self) -> LoopSettings:
        """The settings of the training loop."""
        return LoopSettings(
            seed=self.seed,
            train=self.train,
            optimizer=self.optimizer,
            evaluation=self.evaluation,
            checkpoint=self.checkpoint,
        )


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a TOML recipe.

    Args:
        path: The recipe.
        overrides: `section.key=value` with a TOML value, for example `optimizer.lr=3e-4`.

    Returns:
        The resolved settings.

    Raises:
        ConfigError: The file is missing or no TOML, or a setting is wrong.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return make_config(raw, overrides)


def make_config(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Validated settings from a nested mapping, presets expanded.

    Raises:
        ConfigError: An unknown key, a wrong value, or a contradiction; names the key.
    """
    merged = dict(raw)
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    merged = _merge(_preset(merged.get("preset", "default")), merged)
    if isinstance(merged["search"], dict) and merged["search"].get("guard") == "none":
        merged["search"]["guard"] = None
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error))) from None


def to_toml(config: RunConfig) -> str:
    """All settings, defaults included, as TOML that `load_config` reads back."""
    dumped = config.model_dump()
    if dumped["search"]["guard"] is None:
        dumped["search"]["guard"] = "none"
    return tomli_w.dumps(_without_none(dumped))


def differences(old_toml: str, new_toml: str) -> list[str]:
    """Settings that differ, one sentence each: `optimizer.lr: 0.0001 -> 0.0003`."""
    old, new = (dict(_flatten(tomllib.loads(text))) for text in (old_toml, new_toml))
    keys = sorted(old.keys() | new.keys())
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]


def _preset(name: object) -> Raw:
    """Raw `search` and `validation` sections of a preset; unknown names are reported later."""
    search = {"paper": Search.paper(), "release": Search.release()}.get(str(name), Search())
    score = AccuracyValidation() if name in {"paper", "release"} else TeacherKLValidation()
    return {"search": dataclasses.asdict(search), "validation": dataclasses.asdict(score)}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Raw:
    """`above` over `below`; a section that changes its `type` replaces the whole section."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            replaced = "type" in value and value["type"] != old.get("type")
            merged[key] = value if replaced else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _parse_override(text: str) -> Raw:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r} must look like section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def _sentences(error: ValidationError) -> list[str]:
    """One sentence per mistake, naming the key as it is written in TOML."""
    known = set(_known_keys(RunConfig))
    sentences = []
    for item in _relevant(error):
        path = [str(part) for part in item["loc"]]
        key = ".".join(part for part in path if part in known or part == path[-1])
        if item["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            close = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            sentences.append(f"unknown setting {key}{hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            sentences.append(f"{key}: {message} (got {item['input']!r})" if key else message)
    return sentences


def _relevant(error: ValidationError) -> list[Any]:
    """The mistakes, without those of union members the user did not mean.

    A union reports every member; the member with the fewest mistakes is the one that was meant.
    """
    members = {cls.__name__ for cls in _classes(RunConfig)}
    groups: dict[tuple[Any, ...], dict[str, list[Any]]] = {}
    for item in error.errors():
        loc = item["loc"]
        index = next((i for i, part in enumerate(loc) if part in members), len(loc))
        member = str(loc[index]) if index < len(loc) else ""
        groups.setdefault(loc[:index] if member else loc, {}).setdefault(member, []).append(item)

    def cost(items: list[Any]) -> tuple[bool, int]:
        return any(item["loc"][-1] == "type" for item in items), len(items)

    return [item for group in groups.values() for item in min(group.values(), key=cost)]


def _classes(root: Any) -> Iterator[type]:
    """All settings classes reachable from `root`'s annotations."""
    for hint in typing.get_type_hints(root, include_extras=False).values():
        for candidate in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
                yield candidate
                yield from _classes(candidate)


def _known_keys(root: Any) -> Iterator[str]:
    yield from RunConfig.model_fields
    for cls in _classes(root):
        yield from (field.name for field in dataclasses.fields(cls))
