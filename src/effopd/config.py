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
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from effopd.analysis.monitor import MonitorSettings
from effopd.core.extrapolator import Search
from effopd.demo.world import TinyWorld
from effopd.errors import ConfigError
from effopd.evaluation.cached_kl import CachedKLValidation
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.models.loading import ModelSettings
from effopd.objectives import ExOPD, FullVocabularyKL, PolicyGradient, SampledTokenOPD
from effopd.rollouts.engine import Sampling
from effopd.rollouts.prompts import PromptTemplate
from effopd.tasks.files import JsonlTask
from effopd.trainers.methods import (
    EFFOPD_EPOCHS,
    EFFOPD_SEARCH,
    EFFOPD_VALIDATION,
    SEARCHING,
    Method,
    Preset,
    method_settings,
)
from effopd.trainers.policy_learning import check_reward_learning
from effopd.trainers.settings import (
    CheckpointSettings,
    EvaluationSettings,
    LoopSettings,
    OptimizerSettings,
    TrainSettings,
)
from effopd.trainers.teachers import SelfTeacher

Raw = dict[str, Any]


class RunConfig(BaseModel):
    """Everything `effopd train` needs to know.

    Attributes:
        label: Name in reports; the method's name by default.
        method: What is compared: "opd" distils without a search, "effopd" with one; "exopd" goes
            past the teacher; "alphaopd", "relex" and "expo" are other accelerators; "grpo",
            "dapo", "ppo" and "dr_grpo" learn from rewards (docs/methods.md).
        preset: Where `search`, `validation` and `objective` start from: "default" measured best,
            "paper" the paper to the letter, "release" the released code (docs/presets.md).
        seed: Seed of prompts, sampling and validation sets.
        device: PyTorch device of the student.
        teacher_device: Device of the teacher; the student's by default.
        threads: CPU threads of PyTorch; results are reproducible for a fixed number.
        student: Model to train; the tiny world brings its own.
        teacher: Model that scores; the tiny world brings its own.
        teachers: More teachers by name, for problems that name one (`task.teacher_field`).
        self_teacher: Makes the teacher an average of the student's own weights; it starts as
            `teacher`, or as the untrained student.
        reference: What ExOPD moves away from, and what the KL term of GRPO holds on to: the
            untrained student by default; the teacher's own base for ExOPD's base correction.
        task: Problems.
        prompt: From problem to prompt.
        sampling: How the student samples.
        objective: What is minimised.
        train: How much.
        optimizer: AdamW and its learning rate.
        evaluation: Held-out evaluation.
        checkpoint: When to save.
        monitor: What watches the weights.
        search: The search.
        validation: How the search scores candidates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = ""
    method: Method = "effopd"
    preset: Preset = "default"
    seed: int = 0
    device: str = "cpu"
    teacher_device: str | None = None
    threads: int = Field(default=1, ge=1)
    student: ModelSettings | None = None
    teacher: ModelSettings | None = None
    teachers: dict[str, ModelSettings] = {}
    self_teacher: SelfTeacher | None = None
    reference: ModelSettings | None = None
    task: Annotated[TinyWorld | JsonlTask, Field(discriminator="type")] = TinyWorld()
    prompt: PromptTemplate = PromptTemplate()
    sampling: Sampling = Sampling(max_new_tokens=32)
    objective: Annotated[
        SampledTokenOPD | ExOPD | FullVocabularyKL | PolicyGradient, Field(discriminator="type")
    ] = FullVocabularyKL()
    train: TrainSettings = TrainSettings(epochs=EFFOPD_EPOCHS)
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    monitor: MonitorSettings = MonitorSettings()
    search: Search = EFFOPD_SEARCH
    validation: Annotated[
        AccuracyValidation | TeacherKLValidation | CachedKLValidation, Field(discriminator="type")
    ] = EFFOPD_VALIDATION

    @model_validator(mode="after")
    def _is_consistent(self) -> "RunConfig":
        _check_models(self)
        _check_verifier(self)
        _check_lent_answers(self)
        if self.search.schedule.type == "foresight" and not self.monitor.every:
            raise ValueError("search.schedule.type = 'foresight' needs monitor.every of 1 or more")
        train = self.loop.train  # the loop's settings check one another
        if isinstance(self.objective, PolicyGradient):
            check_reward_learning(self.objective, train, self.sampling.max_new_tokens)
        if self.sampling.temperature != 1.0:
            raise ValueError(
                "sampling.temperature must be 1: on-policy objectives need samples of the policy "
                f"itself, got {self.sampling.temperature}"
            )
        return self

    @property
    def searches(self) -> bool:
        """Whether the method moves the weights along a direction."""
        return self.method in SEARCHING

    @property
    def needs_teacher(self) -> bool:
        """Whether training or validation needs a teacher."""
        objective = self.objective
        taught = not isinstance(objective, PolicyGradient) or objective.needs_teacher
        return taught or (self.searches and self.validation.type != "accuracy")

    @property
    def method_name(self) -> str:
        """Method in records and reports: its own name, or the preset's."""
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
            monitor=self.monitor,
        )


def _check_models(config: RunConfig) -> None:
    """Every model that is needed is named; the tiny world brings student and teacher."""
    if config.task.type != "tiny_world":
        if config.student is None:
            raise ValueError(f"task.type = {config.task.type!r} needs student.path")
        has_teacher = config.teacher or config.teachers or config.self_teacher
        is_needed = config.needs_teacher or config.train.stop.target > 0
        if is_needed and not has_teacher:
            raise ValueError(f"task.type = {config.task.type!r} needs teacher.path")
    if config.self_teacher is not None and config.teachers:
        raise ValueError("self_teacher is the only teacher: remove [teachers]")


def _check_lent_answers(config: RunConfig) -> None:
    """A search and its re-test need different answers of one batch."""
    validation, train = config.validation, config.train
    lends = isinstance(validation, CachedKLValidation) and validation.source == "batch"
    answers = train.prompts_per_step * train.responses_per_prompt
    if lends and config.searches and config.search.retest and 2 * validation.prompts > answers:
        raise ValueError(
            f"search.retest with validation.source = 'batch' needs twice validation.prompts = "
            f"{validation.prompts} answers, a step has {answers}"
        )


def _check_verifier(config: RunConfig) -> None:
    """What looks at rewards or accuracies needs someone who checks answers."""
    if not isinstance(config.task, JsonlTask) or config.task.verifier != "none":
        return
    if config.searches and config.validation.type == "accuracy":
        raise ValueError(
            "validation.type = 'accuracy' needs task.verifier; use validation.type = 'teacher_kl'"
        )
    if isinstance(config.objective, PolicyGradient):
        raise ValueError(
            "objective.type = 'policy_gradient' learns from rewards: set task.verifier"
        )
    if config.train.stop.is_active:
        raise ValueError("train.stop looks at accuracies: set task.verifier")


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
    merged = _merge(_defaults(merged), merged)
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


def _defaults(raw: Mapping[str, Any]) -> Raw:
    """All settings of a method and preset in raw form; unknown ones are reported later."""
    method, preset = str(raw.get("method", "effopd")), str(raw.get("preset", "default"))
    found = method_settings(method, preset, _longest(raw))
    return RunConfig(**found).model_dump(exclude={"method", "preset"})


def _longest(raw: Mapping[str, Any]) -> int:
    """The length cap that is asked for, else the default; a wrong one is reported later."""
    section = raw.get("sampling")
    cap = section.get("max_new_tokens") if isinstance(section, Mapping) else None
    if isinstance(cap, int) and cap > 0:
        return cap
    return RunConfig().sampling.max_new_tokens


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
            if typing.get_origin(hints[key]) is dict:  # sections with names of the user's own
                named = [(k, v) for k, v in value.items() if isinstance(v, Mapping)]
                for name, item in named:
                    yield from _unknown(item, members[0], f"{section}{key}.{name}.")
            elif given in types:
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
    return [
        _sentence(i, raw) for i in items if not any(i["loc"][: len(o)] == o for o in other_types)
    ]


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
    if not key or message.startswith((f"{key}.", f"{key} ")):
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
