"""The root of a run's settings: frozen dataclasses, one section each, checked together.

Every section is the settings object of the thing it configures; nothing is described twice.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from effopd.analysis.monitor import MonitorSettings
from effopd.data.dataset import DatasetTask
from effopd.data.files import JsonlTask
from effopd.data.world import TinyWorld
from effopd.evaluation.cached_kl import CachedKLValidation
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.models.loading import ModelSettings
from effopd.objectives import ExOPD, FullVocabularyKL, PolicyGradient, SampledTokenOPD
from effopd.rewards.code import CodeChecking
from effopd.rollouts.engine import Sampling
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.settings import RolloutSettings
from effopd.search.extrapolator import Search
from effopd.servers.settings import ServerSettings
from effopd.training.methods import (
    EFFOPD_EPOCHS,
    EFFOPD_SEARCH,
    EFFOPD_VALIDATION,
    SEARCHING,
    Method,
    Preset,
)
from effopd.training.policy_learning import check_reward_learning
from effopd.training.settings import (
    CheckpointSettings,
    EvaluationSettings,
    LoopSettings,
    MemorySettings,
    OptimizerSettings,
    TrainSettings,
)
from effopd.training.teachers import SelfTeacher


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
        device: PyTorch device of the student; "auto" is a GPU where there is one, else the CPU.
            Records hold the device that was taken.
        teacher_device: Device of the teacher; the student's by default.
        threads: CPU threads of PyTorch; results are reproducible for a fixed number.
        smoke: Try the run out: two short steps on the CPU with tiny untrained models of the same
            architectures and a few sums as problems (docs/recipes.md).
        student: Model to train; the tiny world brings its own.
        teacher: Model that scores; the tiny world brings its own.
        teachers: More teachers by name, for problems that name one (`task.teacher_field`).
        teacher_server: A server that scores in the place of `teacher` (docs/servers.md).
        self_teacher: Makes the teacher an average of the student's own weights; it starts as
            `teacher`, or as the untrained student.
        reference: What ExOPD moves away from, and what the KL term of GRPO holds on to: the
            untrained student by default; the teacher's own base for ExOPD's base correction.
        task: Problems.
        code: How programs are checked where `task.verifier` is "code".
        prompt: From problem to prompt.
        sampling: How the student samples.
        rollouts: Who writes the student's answers: the live model, vLLM, or a server.
        objective: What is minimised.
        train: How much.
        optimizer: AdamW and its learning rate.
        evaluation: Held-out evaluation.
        checkpoint: When to save.
        monitor: What watches the weights.
        memory: What is kept in which precision and where.
        search: The search.
        validation: How the search scores candidates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = ""
    method: Method = "effopd"
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
    reference: ModelSettings | None = None
    task: Annotated[TinyWorld | JsonlTask | DatasetTask, Field(discriminator="type")] = TinyWorld()
    code: CodeChecking = CodeChecking()
    prompt: PromptTemplate = PromptTemplate()
    sampling: Sampling = Sampling(max_new_tokens=32)
    rollouts: RolloutSettings = RolloutSettings()
    objective: Annotated[
        SampledTokenOPD | ExOPD | FullVocabularyKL | PolicyGradient, Field(discriminator="type")
    ] = FullVocabularyKL()
    train: TrainSettings = TrainSettings(epochs=EFFOPD_EPOCHS)
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    monitor: MonitorSettings = MonitorSettings()
    memory: MemorySettings = MemorySettings()
    search: Search = EFFOPD_SEARCH
    validation: Annotated[
        AccuracyValidation | TeacherKLValidation | CachedKLValidation, Field(discriminator="type")
    ] = EFFOPD_VALIDATION

    @model_validator(mode="after")
    def _is_consistent(self) -> "RunConfig":
        _check_models(self)
        _check_teacher_server(self)
        _check_rollouts(self)
        _check_adapters(self)
        _check_memory(self)
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
    def rounds_updates(self) -> bool:
        """Whether bfloat16 weights are trained by updates too small for them, without masters."""
        student = self.student
        low = student is not None and student.dtype == "bfloat16" and student.lora is None
        return low and not self.memory.master_weights and self.optimizer.lr < 1e-4

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
            memory=self.memory,
        )


def _check_models(config: RunConfig) -> None:
    """Every model that is needed is named; the tiny world brings student and teacher."""
    if config.task.type != "tiny_world":
        if config.student is None:
            raise ValueError(f"task.type = {config.task.type!r} needs student.path")
        local = config.teacher or config.teachers or config.self_teacher
        has_teacher = local or config.teacher_server
        is_needed = config.needs_teacher or config.train.stop.target > 0
        if is_needed and not has_teacher:
            raise ValueError(f"task.type = {config.task.type!r} needs teacher.path")
    if config.self_teacher is not None and config.teachers:
        raise ValueError("self_teacher is the only teacher: remove [teachers]")


def _check_rollouts(config: RunConfig) -> None:
    """Adapters write with the live model alone: other engines take whole weights."""
    engine, student = config.rollouts.engine, config.student
    if engine != "hf" and student is not None and student.lora is not None:
        raise ValueError(f"rollouts.engine = {engine!r} takes whole weights, not student.lora's")


def _check_teacher_server(config: RunConfig) -> None:
    """A server scores given tokens, at temperature 1; nothing over the whole vocabulary."""
    if config.teacher_server is None:
        return
    if config.teacher is not None or config.self_teacher is not None:
        raise ValueError("teacher_server takes the place of [teacher] and [self_teacher]: keep one")
    objective = config.objective
    if isinstance(objective, FullVocabularyKL):
        raise ValueError(
            "objective.type = 'full_kl' needs a teacher's whole vocabulary, teacher_server gives "
            "log-probabilities of given tokens: use 'sampled_token' or 'exopd'"
        )
    if getattr(objective, "teacher_temperature", 1.0) != 1.0:
        raise ValueError(
            "objective.teacher_temperature must be 1 with teacher_server: servers score prompts "
            "with the logits as they are"
        )
    if config.searches and config.validation.type != "accuracy":
        raise ValueError(
            f"validation.type = {config.validation.type!r} needs a teacher's whole vocabulary, "
            "teacher_server gives log-probabilities of given tokens: use 'accuracy'"
        )
    if config.evaluation.divergence and config.evaluation.problems:
        raise ValueError(
            "evaluation.divergence needs a teacher's whole vocabulary, teacher_server gives "
            "log-probabilities of given tokens: set it to false"
        )


def _check_adapters(config: RunConfig) -> None:
    """Of a student with adapters, the product of two factors is what is trained and searched."""
    others = [config.teacher, *config.teachers.values(), config.reference]
    if any(model is not None and model.lora is not None for model in others):
        raise ValueError("lora is for the student: merge the adapter of another model into it")
    if config.student is None or config.student.lora is None:
        return
    if config.self_teacher is not None:
        raise ValueError("self_teacher averages weights, student.lora trains factors: keep one")
    if config.monitor.every:
        raise ValueError("monitor watches weights, student.lora trains factors: keep one")
    if config.memory.master_weights:
        raise ValueError("memory.master_weights is for weights: adapters are float32 anyway")
    if config.searches and config.search.direction.type in {"averaged", "relex", "alpha_pls"}:
        raise ValueError(
            f"search.direction = {config.search.direction.type!r} averages or fits weights, "
            "student.lora trains factors: use 'since_accepted', 'since_raw' or 'since_base'"
        )


def _check_memory(config: RunConfig) -> None:
    """Nothing is kept apart that moves or is not there."""
    if config.memory.teacher_offload and config.self_teacher is not None:
        raise ValueError("memory.teacher_offload is for teachers that stay as they are")
    dtype = config.student.dtype if config.student is not None else "float32"
    if dtype == "float16":
        _check_float16(config)
    if dtype == "float32" and config.memory.master_weights and not config.memory.offload_optimizer:
        raise ValueError(
            "memory.master_weights keeps float32 copies of a student in low precision, this one "
            "is in float32: set student.dtype = 'bfloat16', or memory.offload_optimizer too"
        )


def _check_float16(config: RunConfig) -> None:
    """AdamW's eps of 1e-8 is 0 in float16, and so are squares of most gradients."""
    assert config.student is not None
    adapted, objective = config.student.lora is not None, config.objective
    why = "student.dtype = 'float16' cannot be trained itself, its weights are NaN after one update"
    if not adapted and not config.memory.master_weights:
        raise ValueError(
            f"{why}: set memory.master_weights = true, which trains float32 copies, or "
            "student.dtype = 'bfloat16'"
        )
    if not adapted and isinstance(objective, PolicyGradient) and objective.needs_critic:
        raise ValueError(
            f"{why}, and the critic, a copy of it, has no float32 copies: set student.dtype = "
            "'bfloat16' or 'float32'"
        )


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
    if isinstance(config.task, TinyWorld) or config.task.verifier != "none":
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
