"""The root of a run's settings: frozen dataclasses, one section each, checked together.

Every section is the settings object of the thing it configures; nothing is described twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
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
from effopd.training.optimizers import OptimizerSettings, optimizer_contradictions
from effopd.training.settings import (
    CheckpointSettings,
    EvaluationSettings,
    LoopSettings,
    MemorySettings,
    MonitorSettings,
    TrainSettings,
)
from effopd.training.teachers import SelfTeacher, alignment_contradictions

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
        method: What is compared: "opd" distils without a search, "effopd" with one; "exopd" goes
            past the teacher; "alphaopd" and "expo" are other accelerators;
            "first_update", "fixed_alpha" and "fixed_negative" are controls; "grpo",
            "dapo", "ppo" and "dr_grpo" learn from rewards (docs/methods.md).
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
        alignment: Lets teachers have another tokenizer than the student, for the objective
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
        search: The search.
        validation: How the search scores candidates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = ""
    method: Annotated[str, BeforeValidator(_known_method)] = "effopd"
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
    task: Annotated[TinyWorld | DatasetTask, Field(discriminator="type")] = TinyWorld()
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
        contradictions = (
            _of_models, _of_teacher_server, alignment_contradictions, _of_adapters, _of_memory,
            _of_rewards, optimizer_contradictions,
        )  # fmt: skip
        for found in contradictions:
            for sentence in found(self):
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
    def needs_teacher(self) -> bool:
        """Whether training or validation needs a teacher."""
        scored = self.searches and self.validation.type != "accuracy"
        return self.objective.needs_teacher or scored

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
        names = [each.name for each in fields(LoopSettings)]
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
    section = raw.get("sampling")
    cap = section.get("max_new_tokens") if isinstance(section, Mapping) else None
    longest = cap if isinstance(cap, int) and cap > 0 else defaults["sampling"].max_new_tokens
    chosen = sections(
        str(raw.get("method", defaults["method"])),
        str(raw.get("preset", defaults["preset"])),
        longest,
    )
    return merged(merged(raw_of(defaults), raw_of(chosen)), raw)


# Contradictions: each function yields what is wrong, the first of which is reported ---------------


def _of_models(config: Config) -> Iterator[str]:
    """Every model that is needed is named; the tiny world brings student and teacher."""
    if isinstance(config.task, TinyWorld) and config.task.calculator and not config.environment:
        yield "task.calculator needs environment.name = 'effopd.data.world:Calculator'"
    if config.task.type != "tiny_world":
        if config.student is None:
            yield f"task.type = {config.task.type!r} needs student.path"
        local = config.teacher or config.teachers or config.self_teacher
        is_needed = config.needs_teacher or config.train.stop.target > 0
        if is_needed and not local and not config.teacher_server:
            yield f"task.type = {config.task.type!r} needs teacher.path"
    if config.self_teacher is not None and config.teachers:
        yield "self_teacher is the only teacher: remove [teachers]"
    own = config.self_teacher
    if own is not None and own.weights != "average":
        name = f"self_teacher.weights = {own.weights!r}"
        if config.teacher is not None:
            yield f"{name} takes the place of [teacher]: keep one"
        if config.teacher_prompt is None:
            yield f"{name} without [teacher_prompt] reads what the student reads: give it one"
        if own.weights == "current" and config.searches and config.validation.type == "teacher_kl":
            yield (
                f"{name} moves with every candidate of the search, which teacher_kl would compare "
                "with itself: use validation.type = 'importance_kl' or 'accuracy'"
            )
    known = {"", *config.teachers}
    if strange := sorted(config.teacher_prompts.keys() - known):
        yield f"teacher_prompts.{strange[0]} is for no teacher: known are [teachers] by name"
    if config.reference_prompt is not None and not config.objective.needs_reference:
        yield "reference_prompt is for objectives with a reference: remove it"
    if config.teacher_prompt is not None and not config.needs_teacher:
        yield "teacher_prompt is for methods with a teacher: remove it"


def _of_teacher_server(config: Config) -> Iterator[str]:
    """A server scores given tokens at temperature 1; distributions have to be asked for."""
    if config.teacher_server is None:
        return
    server, objective = config.teacher_server, config.objective
    dense = server.top_k > 0 or server.flavor == "effopd"
    whole = (
        "a distribution at every token, and teacher_server gives log-probabilities of given tokens "
        "alone: set teacher_server.top_k, as 20"
    )
    if config.teacher is not None or config.self_teacher is not None:
        yield "teacher_server takes the place of [teacher] and [self_teacher]: keep one"
    if objective.needs_vocabulary and not dense:
        name = f"objective.type = {objective.type!r}"
        yield f"{name} needs {whole}, or use 'sampled_token' or 'exopd'"
    if objective.needs_vocabulary and server.top_k and objective.reward_scale != 1.0:
        yield (
            f"objective.reward_scale must be 1 in {objective.type!r} with teacher_server.top_k, "
            f"got {objective.reward_scale:g}: it mixes logits of the whole vocabulary, of which a "
            "server names k; use objective.type = 'exopd', or teacher_server.flavor = 'effopd'"
        )
    scored_by_states = objective.needs_vocabulary and server.flavor == "effopd"
    if objective.teacher_temperature != 1.0 and not scored_by_states:
        yield (
            "objective.teacher_temperature must be 1 with teacher_server: servers score prompts "
            "with the logits as they are"
        )
    if config.searches and config.validation.type != "accuracy" and not dense:
        yield f"validation.type = {config.validation.type!r} needs {whole}, or use 'accuracy'"
    if config.evaluation.divergence and config.evaluation.problems and not dense:
        yield f"evaluation.divergence needs {whole}, or set it to false"
    writes = server.flavor != "effopd"
    if config.evaluation.teacher and config.evaluation.problems and not writes:
        yield (
            "evaluation.teacher needs a server that writes answers, teacher_server.flavor = "
            "'effopd' scores them: set it to false"
        )


def _of_adapters(config: Config) -> Iterator[str]:
    """Of a student with adapters, the product of two factors is what is trained and searched."""
    engine, adapted = config.rollouts.engine, config.student and config.student.lora
    if engine != "hf" and adapted:
        yield f"rollouts.engine = {engine!r} takes whole weights, not student.lora's"
    others = [config.teacher, *config.teachers.values(), config.reference]
    if any(model is not None and model.lora and model.lora.adapter is None for model in others):
        yield "lora trains the student: of another model, name the adapter to load (lora.adapter)"
    averages = config.self_teacher is not None and config.self_teacher.weights == "average"
    if averages and config.teacher is not None and config.teacher.lora is not None:
        yield "self_teacher averages weights, teacher.lora has factors: merge the adapter"
    if not adapted:
        return
    if config.self_teacher is not None and config.self_teacher.weights == "average":
        yield (
            "self_teacher averages weights, student.lora trains factors: keep one, or set "
            "self_teacher.weights = 'base' or 'current'"
        )
    if config.monitor.every:
        yield "monitor watches weights, student.lora trains factors: keep one"
    if config.memory.master_weights:
        yield "memory.master_weights is for weights: adapters are float32 anyway"
    if config.searches and config.search.direction.type == "alpha_pls":
        yield (
            "search.direction = 'alpha_pls' fits weights, student.lora trains factors: use "
            "'since_accepted', 'since_raw' or 'since_base'"
        )


def _of_memory(config: Config) -> Iterator[str]:
    """Nothing is kept apart that moves or is not there; float16 alone cannot be trained."""
    own = config.self_teacher
    if config.memory.teacher_offload and own is not None and own.weights != "base":
        yield "memory.teacher_offload is for teachers that stay as they are"
    dtype = config.student.dtype if config.student is not None else "float32"
    masters = config.memory.master_weights
    if dtype == "float16" and config.student is not None and config.student.lora is None:
        # AdamW's eps of 1e-8 is 0 in float16, and so are squares of most gradients
        why = (
            "student.dtype = 'float16' cannot be trained itself, its weights are NaN after one "
            "update"
        )
        if not masters:
            yield (
                f"{why}: set memory.master_weights = true, which trains float32 copies, or "
                "student.dtype = 'bfloat16'"
            )
        if config.objective.needs_critic:
            yield (
                f"{why}, and the critic, a copy of it, has no float32 copies: set student.dtype = "
                "'bfloat16' or 'float32'"
            )
    if dtype == "float32" and masters and not config.memory.offload_optimizer:
        yield (
            "memory.master_weights keeps float32 copies of a student in low precision, this one "
            "is in float32: set student.dtype = 'bfloat16', or memory.offload_optimizer too"
        )


def _of_rewards(config: Config) -> Iterator[str]:
    """What looks at rewards or accuracies needs someone who checks answers."""
    if isinstance(config.task, TinyWorld) or config.task.verifier != "none":
        return
    if config.searches and config.validation.type == "accuracy":
        yield "validation.type = 'accuracy' needs task.verifier; use validation.type = 'teacher_kl'"
    if config.objective.needs_rewards:
        yield f"objective.type = {config.objective.type!r} learns from rewards: set task.verifier"
    if config.train.stop.is_active:
        yield "train.stop looks at accuracies: set task.verifier"
