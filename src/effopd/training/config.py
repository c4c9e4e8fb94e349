"""The root of a run's settings: frozen dataclasses, one section each, checked together.

Every section is the settings object of the thing it configures; nothing is described twice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    model_validator,
)

from effopd.config.reading import (
    Raw,
    as_json,
    checked,
    explained,
    merged,
    overridden,
    raw_of,
    read_recipe,
)
from effopd.data.dataset import DatasetTask
from effopd.data.smollm2 import World
from effopd.data.world import TinyWorld
from effopd.evaluation.config import EvalConfig
from effopd.evaluation.importance_kl import ImportanceKLValidation
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.methods import FullVocabularyKL, Objective
from effopd.methods.registry import EFFOPD_SEARCH, EFFOPD_VALIDATION, METHODS, Preset, sections
from effopd.models.alignment import AlignmentSettings
from effopd.models.loading import ModelSettings, real_device
from effopd.rewards.code import CodeChecking
from effopd.rollouts.engine import Sampling
from effopd.rollouts.environment import EnvironmentSettings
from effopd.rollouts.prompts import PromptTemplate, TeacherPrompt
from effopd.rollouts.settings import RolloutSettings
from effopd.search.extrapolator import Search
from effopd.servers.settings import ServerSettings
from effopd.training.averages import AverageSettings
from effopd.training.contradictions import contradictions
from effopd.training.optimizers import OptimizerSettings
from effopd.training.settings import (
    CheckpointSettings,
    EvaluationSettings,
    LoopSettings,
    MemorySettings,
    MonitorSettings,
    TrainSettings,
)
from effopd.training.teachers import SelfTeacher
from effopd.training.tracking import TrackingSettings

Settings = TypeVar("Settings", "Config", EvalConfig)


def _known_method(name: object) -> object:
    if name not in [*METHODS]:  # a list, say, has no hash
        *others, last = map(repr, METHODS)
        raise ValueError(f"method must be {', '.join(others)} or {last}, got {name!r}")
    return name


def _registered(raw: Any) -> Objective:
    """The settings of the objective that `type` names."""
    chosen = next(each for each in Objective.choices if each.type == raw["type"])
    found: Objective = TypeAdapter(chosen).validate_json(as_json(raw), strict=True)
    return found


class Config(BaseModel):
    """Everything a training run needs to know.

    A section is a settings object, which is taken whole, or a mapping of some of its settings;
    the others are what `method` and `preset` stand for. The same settings in TOML are the same run.

    Attributes:
        label: Name in reports; the method's name by default.
        method: What is compared: "slope" distils in small updates, at a rate that follows the
            slopes of the loss, "opd" plainly, "effopd" with a search; others are controls, other
            accelerators, or learn from rewards (docs/methods.md). "effopd" by default with one of
            the published presets, else "slope".
        preset: Where `search`, `validation` and `objective` start from: "default" measured best,
            "paper" the paper to the letter, "release" the released code (docs/presets.md).
        seed: Seed of prompts, sampling and validation sets.
        device: PyTorch device of the student; "auto" is a GPU where there is one, else the CPU.
            Records hold the device that was taken.
        teacher_device: Device of the teacher; the student's by default.
        threads: CPU threads of PyTorch; results are reproducible for a fixed number.
        smoke: Try the run out: two short steps on the CPU with tiny untrained models of the same
            architectures and a few sums as problems (docs/recipes.md).
        student: Model to train; the tiny world brings its own.
        teacher: Model that scores; the tiny world brings its own.
        teachers: More teachers by name, for problems that name one (`task.train.teacher_field`).
        teacher_server: A server that scores in the place of `teacher` (docs/servers.md).
        self_teacher: Makes the teacher one of the student's own weights: their average, which
            starts as `teacher` or as the untrained student, or what they are (docs/teachers.md).
        teacher_prompt: What teachers read before an answer; the student's prompt by default.
        teacher_prompts: The same for teachers by name; they go before `teacher_prompt`.
        alignment: Lets teachers have another tokenizer than the student, for "full_kl" and
            "sampled_token"; without it such a run is refused (docs/tokenizers.md).
        reference: What ExOPD moves away from, and what the KL term of GRPO holds on to: the
            untrained student by default; the teacher's own base for ExOPD's base correction.
        reference_prompt: What the reference reads before an answer; the student's prompt by
            default.
        task: Problems.
        code: How programs are checked where `task.verifier` is "code".
        prompt: From problem to prompt.
        sampling: How the student samples.
        rollouts: Who writes the student's answers: the live model, vLLM, or a server.
        environment: What replies to the student, which then goes on: a tool, say (docs/turns.md).
        objective: What is minimised.
        train: How much.
        optimizer: What moves the weights, and its learning rate.
        average: What is evaluated and saved in place of the last weights.
        evaluation: Held-out evaluation.
        checkpoint: When to save.
        monitor: What watches the weights.
        memory: What is kept in which precision and where.
        tracking: Experiment trackers that follow the run (docs/trackers.md).
        search: The search.
        validation: How the search scores candidates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = ""
    method: Annotated[str, BeforeValidator(_known_method)] = "slope"
    preset: Preset = "default"
    seed: int = 0
    device: str = "auto"
    teacher_device: str | None = None
    threads: int = Field(default=1, ge=1)
    smoke: bool = False
    student: ModelSettings | None = None
    teacher: ModelSettings | None = None
    teachers: dict[str, ModelSettings] = {}
    teacher_server: ServerSettings | None = None
    self_teacher: SelfTeacher | None = None
    teacher_prompt: TeacherPrompt | None = None
    teacher_prompts: dict[str, TeacherPrompt] = {}
    alignment: AlignmentSettings | None = None
    reference: ModelSettings | None = None
    reference_prompt: TeacherPrompt | None = None
    task: Annotated[World | DatasetTask, Field(discriminator="type")] = TinyWorld()
    code: CodeChecking = CodeChecking()
    prompt: PromptTemplate = PromptTemplate()
    sampling: Sampling = Sampling(max_new_tokens=32)
    rollouts: RolloutSettings = RolloutSettings()
    environment: EnvironmentSettings | None = None
    objective: Annotated[Objective, PlainValidator(_registered)] = FullVocabularyKL()
    train: TrainSettings = TrainSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    average: AverageSettings = AverageSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    monitor: MonitorSettings = MonitorSettings()
    memory: MemorySettings = MemorySettings()
    tracking: TrackingSettings = TrackingSettings()
    search: Search = EFFOPD_SEARCH
    validation: Annotated[
        AccuracyValidation | TeacherKLValidation | ImportanceKLValidation,
        Field(discriminator="type"),
    ] = EFFOPD_VALIDATION

    def __init__(self, /, **given: Any) -> None:
        """Expands method and preset, and checks everything.

        Raises:
            ConfigError: An unknown key, a wrong value, or a contradiction; names the key.
        """
        whole = checked(_expanded(raw_of(given)), Config)
        with explained(whole):
            self.__pydantic_validator__.validate_json(
                as_json(whole), strict=True, self_instance=self
            )

    @classmethod
    def of(cls, method: str, **sections: Any) -> "Config":
        """The settings of a method: `Config.of("opd", optimizer={"lr": 1e-5}, train={"steps": 8})`.

        Raises:
            ConfigError: An unknown key, a wrong value, or a contradiction; names the key.
        """
        return cls(method=method, **sections)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Config":
        for sentence in contradictions(self):
            raise ValueError(sentence)
        train = self.loop.train  # the loop's settings check one another
        if self.objective.needs_rewards and train.horizon.tokens:
            raise ValueError(
                "train.horizon cuts answers before they can be rewarded: use it with distillation"
            )
        self.objective.check(
            responses=train.responses_per_prompt, longest=self.sampling.max_new_tokens
        )
        if self.environment is not None and not self.prompt.chat:
            raise ValueError("environment needs prompt.chat = true: bare text has no turns")
        if self.sampling.temperature != 1.0:
            raise ValueError(
                "sampling.temperature must be 1: on-policy objectives need samples of the policy "
                f"itself, got {self.sampling.temperature}"
            )
        return self

    @property
    def searches(self) -> bool:
        """Whether the method moves the weights along a direction."""
        return METHODS[self.method].searches

    @property
    def rounds_updates(self) -> bool:
        """Whether bfloat16 weights are trained by updates too small for them, without masters."""
        student = self.student
        low = student is not None and student.dtype == "bfloat16" and student.lora is None
        small = self.optimizer.lr < 1e-4 or self.optimizer.type == "prodigy"
        return low and not self.memory.master_weights and small

    @property
    def searches_by_teacher(self) -> bool:
        """Whether the search compares the vocabularies of its candidates and of a teacher."""
        return self.searches and self.validation.type != "accuracy"

    @property
    def needs_teacher(self) -> bool:
        """Whether training or validation needs a teacher."""
        return self.objective.needs_teacher or self.searches_by_teacher

    @property
    def measures_divergence(self) -> bool:
        """Whether evaluations compare the vocabularies of student and teacher."""
        return self.evaluation.divergence and self.evaluation.problems > 0

    @property
    def compares_vocabularies(self) -> bool:
        """Whether whole vocabularies of student and teacher are compared anywhere."""
        dense = self.objective.needs_vocabulary
        return dense or self.searches_by_teacher or self.measures_divergence

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
        names = LoopSettings.__dataclass_fields__
        return LoopSettings(**{name: getattr(self, name) for name in names})


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Settings from a TOML recipe, which may extend another one in its directory.

    Args:
        path: The recipe.
        overrides: `section.key=value` with a TOML value, for example `optimizer.lr=3e-4`.

    Returns:
        The resolved settings.

    Raises:
        ConfigError: The file is missing or no TOML, or a setting is wrong.
    """
    return make_config(read_recipe(Path(path)), overrides)


def make_config(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Settings from a nested mapping and overrides.

    Raises:
        ConfigError: An unknown key, a wrong value, or a contradiction; names the key.
    """
    return Config(**overridden(raw, overrides))


def placed(config: Settings) -> Settings:
    """The same settings with the devices of this machine in the place of "auto", as recorded."""
    named = ((name, getattr(config, name, None)) for name in ("device", "teacher_device"))
    found = {name: real_device(device) for name, device in named if device is not None}
    return config.model_copy(update=found)


def _expanded(raw: Raw) -> Raw:
    """All settings: those given over what method and preset stand for.

    The only place that expands them; wrong values are reported later.
    """
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    if raw.get("preset") in ("paper", "release"):
        defaults["method"] = "effopd"
    section = raw.get("sampling")
    cap = section.get("max_new_tokens") if isinstance(section, Mapping) else None
    longest = cap if isinstance(cap, int) and cap > 0 else defaults["sampling"].max_new_tokens
    chosen = sections(
        str(raw.get("method", defaults["method"])),
        str(raw.get("preset", defaults["preset"])),
        longest,
    )
    whole = merged(merged(raw_of(defaults), raw_of(chosen)), raw)
    train, own, objective = whole["train"], raw.get("train", {}), whole["objective"]
    if not (
        isinstance(train, dict) and isinstance(own, Mapping) and isinstance(objective, Mapping)
    ):
        return whole
    # A small batch has fewer answers than the method's updates of one: it takes one update each.
    if "updates_per_step" not in own:
        prompts, responses = train.get("prompts_per_step"), train.get("responses_per_prompt")
        if type(prompts) is int and type(responses) is int and min(prompts, responses) > 0:
            train["updates_per_step"] = min(train["updates_per_step"], prompts * responses)
    # The slopes of sampled tokens that were learned from already are of their noise.
    if whole["method"] == "slope" and "epochs" not in own and objective.get("type") != "full_kl":
        train["epochs"] = 1
    return whole
