"""The objects of one run, made from its settings and models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from effopd.data.problem import CountingVerifier, Problem, Task, Verifier
from effopd.data.smollm2 import World
from effopd.demo.smollm2 import models_of
from effopd.errors import ConfigError
from effopd.evaluation.evaluator import EvaluationResult, Evaluator, Metric, imported_metric, joined
from effopd.evaluation.importance_kl import ImportanceKLValidation, ImportanceWeightedKLValidator
from effopd.evaluation.kept_states import KeptStates
from effopd.evaluation.readings import AlignedReading, Reading
from effopd.evaluation.rollout_sources import FreshRollouts, TrainingBatchRollouts
from effopd.evaluation.routing import OwnPrompt, Teacher, Teachers
from effopd.evaluation.validators import (
    AccuracyValidation,
    RolloutValidator,
    accuracy_measure,
    teacher_kl_measure,
)
from effopd.methods import Learner, Resources
from effopd.models.architecture import position_limit
from effopd.models.loading import ModelSettings
from effopd.models.policy import Policy
from effopd.rewards.build import verifier_for, without_unreadable
from effopd.rollouts.engine import Engine
from effopd.rollouts.environment import Environment, Interaction
from effopd.rollouts.prompts import (
    PromptTemplate,
    lend_template_,
    prompt_remarks,
    shapes,
    without_long_prompts,
)
from effopd.rollouts.rollout import Writer
from effopd.rollouts.vllm import VLLMEngine
from effopd.search.validation import Validator
from effopd.training.collect import Collector, rewards_differ
from effopd.training.config import Config, placed
from effopd.training.engines import (
    engine_of,
    kept_states,
    own_teacher,
    policy_from,
    reference_of,
    scoring_policy,
    served_reading,
    served_teacher,
    student_engine,
    world_model,
)
from effopd.training.teachers import (
    StudentAverage,
    align_vocabularies,
    frozen,
    frozen_copy,
)

EVALUATION_SEED = 0
"""The same held-out sampling for every run, so that runs are compared on equal terms."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects of one run; closed at its end, where some may hold processes or memory.

    `engine` writes for the student; None where its live model does.
    """

    config: Config
    task: Task
    verifier: Verifier | None
    student: Policy
    teachers: Teachers | None
    reference: Policy | None
    reference_prompt: OwnPrompt | None
    average: StudentAverage | None
    engine: Engine | None = None
    interaction: Interaction | None = None
    metric: Metric | None = None

    def close(self) -> None:
        """Ends the verifier's processes, and gives back the engine's memory."""
        if isinstance(self.verifier, CountingVerifier):
            self.verifier.close()
        if isinstance(self.engine, VLLMEngine):
            self.engine.close()

    def writer(self, policy: Teacher, template: PromptTemplate | None = None) -> Writer:
        """Writes with `policy` as the settings say, to the student's prompts or to others."""
        own = self.engine if policy is self.student else None
        return Writer(
            engine=own or engine_of(self.config, policy, self.student.end_ids),
            tokenizer=policy.tokenizer,
            template=template or self.config.prompt,
            sampling=self.config.sampling,
            interaction=self.interaction,
        )

    def evaluator(self) -> Evaluator:
        """Evaluates on the first test problems."""
        problems = self.task.test[: self.config.evaluation.problems]
        return Evaluator(
            problems=problems,
            verifier=self.verifier,
            seed=EVALUATION_SEED,
            batch_tokens=self.config.memory.scoring_tokens,
            metric=self.metric,
        )

    def evaluate_student(self) -> EvaluationResult:
        """The student as it is now, with its divergence from the teacher if that is asked for."""
        teachers = self.teachers if self.config.evaluation.divergence else None
        return self.evaluator().evaluate(
            self.writer(self.student), student=self.student, teachers=teachers
        )

    def evaluate_teacher(self) -> EvaluationResult:
        """Each teacher on the problems that are its own."""
        assert self.teachers is not None
        evaluator, found = self.evaluator(), []
        for name, policy in self.teachers.policies.items():
            own = [p for p in evaluator.problems if self.teachers.name_for(p) == name]
            if own:
                template = prompt_of(self.config, name)
                if name not in self.teachers.prompts:
                    check_teacher_prompts(template, policy.tokenizer, own)
                if self.interaction is not None:
                    self.interaction.check(policy.tokenizer, template, own[0])
                writer = self.writer(policy, template)
                found.append(replace(evaluator, problems=own).evaluate(writer))
        return joined(found, self.metric)

    def learner(self) -> Learner:
        """The objective, applied to this student and its teachers."""
        train = self.config.train
        return self.config.objective.learner(
            Resources(
                student=self.student,
                teachers=self.teachers,
                reference=self.reference,
                reference_prompt=self.reference_prompt,
                longest=self.config.sampling.max_new_tokens,
                updates=train.updates_per_step * train.epochs,
                epochs=train.epochs,
                scoring_tokens=self.config.memory.scoring_tokens,
            )
        )

    def collector(self) -> Collector:
        """Writes the answers of a step."""
        objective = self.config.objective
        collector = Collector(
            writer=self.writer(self.student),
            problems=self.task.train,
            settings=self.config.train,
            seed=self.config.seed,
        )
        if not objective.needs_rewards:
            return collector
        if self.verifier is None:
            raise ConfigError(f"objective.type = {objective.type!r} needs a task with a verifier")
        return replace(
            collector,
            verifier=self.verifier,
            informative=rewards_differ if objective.refills else None,
            max_refills=objective.refills,
        )

    def validator(self) -> Validator | None:
        """Scores the search's candidates; None without a search."""
        settings = self.config.validation
        if not self.config.searches:
            return None
        if isinstance(settings, AccuracyValidation):
            if self.verifier is None:
                raise ConfigError(
                    "validation.type = 'accuracy' needs a task with a verifier; use 'teacher_kl'"
                )
            measure = accuracy_measure(self.verifier)
            return RolloutValidator(
                source=self._fresh_rollouts(), measure=measure, scores_with_teacher=False
            )
        assert self.teachers is not None  # Config checked it
        temperature = self.config.objective.teacher_temperature
        if isinstance(settings, ImportanceKLValidation):
            return ImportanceWeightedKLValidator(
                self.batch_rollouts or self._fresh_rollouts(),
                self.student,
                self.teachers,
                settings,
                teacher_temperature=temperature,
                batch_tokens=self.config.memory.scoring_tokens,
            )
        measure = teacher_kl_measure(
            self.student,
            self.teachers,
            settings.reduce,
            teacher_temperature=temperature,
            batch_tokens=self.config.memory.scoring_tokens,
        )
        return RolloutValidator(
            source=self._fresh_rollouts(), measure=measure, scores_with_teacher=True
        )

    @cached_property
    def batch_rollouts(self) -> TrainingBatchRollouts | None:
        """Gives the search what the student wrote for its next update, where it asks for that."""
        settings = self.config.validation
        reuses = isinstance(settings, ImportanceKLValidation) and settings.source == "batch"
        if not (reuses and self.config.searches):
            return None
        return TrainingBatchRollouts(sampling=self.config.sampling, prompts=settings.prompts)

    def _fresh_rollouts(self) -> FreshRollouts:
        """Has the student answer the validation's prompts."""
        settings, problems = self.config.validation, self.task.train
        if isinstance(settings, AccuracyValidation):
            problems = settings.selected(problems)
        return FreshRollouts(
            writer=self.writer(self.student),
            problems=problems,
            prompts=settings.prompts,
            resample=settings.resample,
            seed=self.config.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Given:
    """Objects that take the place of what the settings of a run name."""

    student: Policy | None = None
    teacher: Policy | None = None
    task: Task | None = None
    verifier: Verifier | None = None
    environment: Environment | None = None


def build_parts(config: Config, report: Callable[[str], None], given: Given = Given()) -> Parts:
    """Loads task and models; trains the tiny world's models if they are not cached."""
    config = placed(config)
    torch.set_num_threads(config.threads)
    metric = imported_metric(config.evaluation.metric)
    student_settings, teacher_settings = _model_settings(config, report)
    student = given.student or policy_from(student_settings, config.device, report)
    served = served_teacher(config, student, report)
    teachers: dict[str, Policy] = {
        name: (
            frozen(given.teacher)
            if given.teacher and not name
            else scoring_policy(config, settings, report)
        )
        for name, settings in teacher_settings.items()
    }
    reference = reference_of(config, student, report)
    readings = _readings(config, student, teachers, reference, report)
    readings |= served_reading(config, student, served)
    kept = kept_states(config, student, report)
    average = None
    if (own := config.self_teacher) is not None and own.weights == "average":
        teachers = {"": teachers.get("") or frozen_copy(student)}
        average = StudentAverage(teachers[""], student, own.decay, kept.release)
    elif own is not None:
        teachers = {"": own_teacher(config, own, student, report)}
    everyone: dict[str, Teacher] = {**teachers, **({"": served} if served else {})}
    verifier = given.verifier or verifier_for(config.task, config.code)
    task = load_problems(config, student.tokenizer, verifier, report, given.task)
    _report_prompts(config, student, task, report)
    interaction = Interaction.of(config.environment, given.environment)
    if interaction is not None:
        interaction.check(student.tokenizer, config.prompt, task.train[0])
    routed = _routed(config, everyone, readings, kept, task) if everyone else None
    reference_prompt = None
    if reference is not None and config.reference_prompt is not None:
        reference_prompt = OwnPrompt.of(config.reference_prompt, reference)
        reference_prompt.check((*task.train, *task.test), config.sampling.max_new_tokens)
    return Parts(
        config=config,
        task=task,
        verifier=verifier,
        student=student,
        teachers=routed,
        reference=reference,
        reference_prompt=reference_prompt,
        average=average,
        engine=student_engine(config, student, student_settings.path, report),
        interaction=interaction,
        metric=metric,
    )


def _readings(
    config: Config,
    student: Policy,
    teachers: Mapping[str, Policy],
    reference: Policy | None,
    report: Callable[[str], None],
) -> dict[str, Reading]:
    """Brings tokens and chat templates together; how teachers with other tokens read, by name."""
    scoring = {f"teachers.{name}" if name else "the teacher": p for name, p in teachers.items()}
    others = scoring | ({"the reference": reference} if reference else {})
    vocabularies = align_vocabularies(
        student,
        others,
        readers=() if config.self_teacher else scoring,
        alignment=config.alignment,
        is_dense=config.compares_vocabularies,
    )
    for remark in vocabularies.remarks:
        report(remark)
    found = {
        name: vocabularies.readings[said]
        for name, said in zip(teachers, scoring, strict=True)
        if said in vocabularies.readings
    }
    for name, policy in teachers.items():
        template, said = prompt_of(config, name), f"teachers.{name}" if name else "the teacher"
        if template.chat and lend_template_(student.tokenizer, policy.tokenizer):
            report(f"{said} has no chat template: its own evaluation uses the student's")
        elif template is config.prompt and (unread := template.unread(policy.tokenizer)):
            report(
                f"the chat template of {said} never reads {', '.join(map(repr, unread))} "
                "(prompt.template_kwargs): in its own evaluation they have no effect"
            )
    return found


def _routed(
    config: Config,
    policies: Mapping[str, Teacher],
    readings: Mapping[str, Reading],
    kept: KeptStates,
    task: Task,
) -> Teachers:
    """The teachers with prompts of their own; refuses problems that none of them can score."""
    prompts = {
        name: OwnPrompt.of(prompt, policy)
        for name, policy in policies.items()
        if (prompt := prompt_of(config, name)) is not config.prompt
        or isinstance(readings.get(name), AlignedReading)
    }
    teachers = Teachers(policies=policies, prompts=prompts, readings=readings, kept=kept)
    found: dict[str, list[Problem]] = {}
    for problem in (*task.train, *task.test):
        found.setdefault(teachers.name_for(problem), []).append(problem)
    for name, own in prompts.items():
        own.check(found.get(name, []), config.sampling.max_new_tokens)
    return teachers


def load_problems(
    config: Config, tokenizer: Any, verifier: Verifier | None, report: Callable[[str], None],
    given: Task | None = None,
) -> Task:  # fmt: skip
    """Reads the problems and leaves out those that cannot be used."""
    config.prompt.check_arguments(tokenizer)
    task = without_unreadable(given or config.task.load(), verifier, report)
    if config.prompt.too_long == "drop":
        task = without_long_prompts(task, config.prompt, tokenizer)
    else:  # what is refused later is refused now, as far as the longest and each shape tell
        _check_shapes(config.prompt, tokenizer, (*task.train, *task.test))
    for counts in task.counts:
        report(str(counts))
        if counts.example:
            report(f"the first row that cannot be read: {counts.example}")
    return task


def prompt_of(config: Config, teacher: str) -> PromptTemplate:
    """What a teacher reads before an answer: its own prompt, or the student's."""
    return config.teacher_prompts.get(teacher) or config.teacher_prompt or config.prompt


def check_teacher_prompts(
    template: PromptTemplate, tokenizer: Any, problems: Sequence[Problem]
) -> None:
    """Refuses a teacher that cannot read the prompts of its own evaluation."""
    try:
        _check_shapes(template, tokenizer, problems)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. Only the teacher's own evaluation needs its prompts: set "
            "evaluation.teacher = false"
        ) from None


def _check_shapes(template: PromptTemplate, tokenizer: Any, problems: Sequence[Problem]) -> None:
    for problem in shapes(problems):
        template.encode(tokenizer, problem)


def _report_prompts(
    config: Config, student: Policy, task: Task, report: Callable[[str], None]
) -> None:
    """Says what would go wrong with prompts and answers, and refuses tokens that are not shared."""
    for problem in (task.train[0], task.test[0]):
        student.check_known(config.prompt.encode(student.tokenizer, problem))
    for remark in prompt_remarks(
        config.prompt,
        student.tokenizer,
        [*task.train, *task.test],
        ends=student.end_ids,
        cap=config.sampling.max_new_tokens,
        positions=position_limit(student.model.config.to_dict()),
    ):
        report(remark)


def base_settings(config: Config, report: Callable[[str], None]) -> ModelSettings:
    """The model that a run starts from; a world brings one, which is made if need be."""
    if config.student is not None:
        return config.student
    return _brought(config, report, teacher=False)


def _brought(config: Config, report: Callable[[str], None], *, teacher: bool) -> ModelSettings:
    """Base or teacher of a world."""
    assert isinstance(config.task, World)  # Config checked it
    models = models_of(config.task, report, teacher=teacher)
    return world_model(config, models.teacher if teacher else models.base)


def _model_settings(
    config: Config, report: Callable[[str], None]
) -> tuple[ModelSettings, dict[str, ModelSettings]]:
    """The student's settings, and the teachers' by name; none for an average of the student."""
    named = dict(config.teachers)
    if config.teacher is not None:
        named[""] = config.teacher
    is_asked = config.evaluation.teacher and config.evaluation.problems > 0
    is_read = config.needs_teacher or config.measures_divergence or is_asked
    is_named = named or config.self_teacher or config.teacher_server
    if isinstance(config.task, World) and is_read and not is_named:
        named[""] = _brought(config, report, teacher=True)
    return base_settings(config, report), named
