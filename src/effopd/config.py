"""The root of a run's settings: TOML in, frozen dataclasses out. The only file that knows pydantic.

Every section is the settings object of the thing it configures; nothing is described twice.
"""

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from effopd.core.extrapolator import Search
from effopd.core.schedule import EveryN
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
        preset: Where `search`, `validation` and `objective` start from: "default" measured best,
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
    ] = FullVocabularyKL()
    train: TrainSettings = TrainSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    search: Search = Search(schedule=EveryN(n=1))
    validation: Annotated[AccuracyValidation | TeacherKLValidation, Field(discriminator="type")] = (
        TeacherKLValidation()
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> "RunConfig":
        if self.task.type != "tiny_world" and (self.student is None or self.teacher is None):
            raise ValueError(f"task.type = {self.task.type!r} needs student.path and teacher.path")
        if self.sampling.temperature != 1.0:
            raise ValueError(
                "sampling.temperature must be 1: on-policy objectives need samples of the policy "
                f"itself, got {self.sampling.temperature}"
            )
        scored = self.method == "effopd" and self.validation.type == "accuracy"
        if scored and isinstance(self.task, JsonlTask) and self.task.verifier == "none":
            raise ValueError(
                "validation.type = 'accuracy' needs task.verifier; use validation.type = "
                "'teacher_kl'"
            )
        return self

    @property
    def method_name(self) -> str:
        """Method in records and reports: "opd", "effopd", or the preset's name."""
        published = self.method == "effopd" and self.preset != "default"
        return self.preset if published else self.method

    @property
    def name(self) -> str:
        """The label, or the method's name."""
        return self.label or self.method_name

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
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None
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
    merged = _merge(_defaults(merged.get("preset", "default")), merged)
    if isinstance(merged["search"], Mapping) and merged["search"].get("guard") == "none":
        merged["search"] = {**merged["search"], "guard": None}
    if mistakes := list(_unknown(merged, RunConfig)):
        raise ConfigError("\n".join(mistakes))
    try:  # as JSON, where strict does not mean that a list is no tuple and a table no dataclass
        return RunConfig.model_validate_json(json.dumps(merged, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error, merged))) from None


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


def _defaults(preset: object) -> Raw:
    """All settings of a preset in raw form; unknown presets are reported later."""
    if preset not in ("paper", "release"):
        return RunConfig().model_dump(exclude={"preset"})
    search = Search.paper() if preset == "paper" else Search.release()
    published = RunConfig(
        search=search, validation=AccuracyValidation(), objective=SampledTokenOPD()
    )
    return published.model_dump(exclude={"preset"})


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
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r} must look like section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(key.strip().split(".")):
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


def _unknown(raw: Mapping[str, Any], cls: type, section: str = "") -> Iterator[str]:
    """One sentence per key that `cls` does not have, and per `type` that names no class."""
    hints = typing.get_type_hints(cls)
    names = sorted(RunConfig.model_fields if cls is RunConfig else hints)
    for key, value in raw.items():
        if key not in names:
            yield f"unknown setting {section}{key}; {_hint(key, names, section, raw.get('type'))}"
        elif isinstance(value, Mapping) and (members := _members(hints[key])):
            types = [getattr(member, "type", None) for member in members]
            given = value.get("type") if None not in types else None
            if given in types:
                yield from _unknown(value, members[types.index(given)], f"{section}{key}.")
            else:
                expected = ", ".join(map(repr, types))
                yield f"{section}{key}.type must be one of {expected}, got {given!r}"


def _hint(key: str, names: Sequence[str], section: str, kind: object) -> str:
    """The name that was meant, else all there are."""
    if close := difflib.get_close_matches(key, names, n=1):
        return f"did you mean {close[0]!r}?"
    where = f"[{section.removesuffix('.')}]" if section else "the top level"
    of_type = f" of type {kind!r}" if "type" in names else ""
    return f"{where}{of_type} has {', '.join(name for name in names if name != 'type')}"


def _members(hint: Any) -> list[Any]:
    """The settings classes in an annotation such as `A | B | None`."""
    return [each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)]


def _sentences(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One sentence per mistake, without those of union members whose `type` is not the given."""
    items = error.errors()
    other_types = [i["loc"][:-1] for i in items if i["loc"] and i["loc"][-1] == "type"]
    return [_sentence(i, raw) for i in items if not any(_starts(i["loc"], o) for o in other_types)]


def _starts(loc: Sequence[object], start: Sequence[object]) -> bool:
    return tuple(loc[: len(start)]) == tuple(start)


def _sentence(item: Any, raw: Mapping[str, Any]) -> str:
    """One mistake, naming the key as it is written in TOML."""
    kind, given = item["type"], item["input"]
    key, message = _key(item, raw), item["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f"{key} is missing"
    if kind == "dataclass_type":
        off = " or 'none'" if key == "search.guard" else ""
        return f"{key} must be a section{off}, got {given!r}"
    if kind != "value_error":
        return f"{key} {message.replace('Input should be', 'must be')}, got {given!r}"
    if not key or message.startswith(f"{key}."):
        return str(message)
    starts_with_setting = isinstance(given, Mapping) and message.split(" ")[0] in given
    return f"{key}.{message}" if starts_with_setting else f"{key}: {message}"


def _key(item: Any, raw: Any) -> str:
    """Dotted key of a mistake, without the union members that pydantic names on the way."""
    *sections, last = item["loc"] or ("",)
    parts = []
    for part in sections:
        if isinstance(raw, Mapping) and part in raw:
            parts.append(part)
            raw = raw[part]
    if item["type"] == "missing" or not isinstance(raw, Mapping) or last in raw:
        parts.append(last)
    return ".".join(map(str, parts))
