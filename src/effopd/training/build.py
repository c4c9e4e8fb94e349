"""The objects of one run, made from its settings and models."""

from dataclasses import dataclass, replace
from functools import cached_property

from effopd.config import RunConfig
from effopd.data.problem import CountingVerifier, Task, Verifier
from effopd.errors import ConfigError
from effopd.evaluation.evaluator import Evaluation, Evaluator
from effopd.evaluation.grading import sum_counts
from effopd.evaluation.importance_kl import ImportanceKLValidation, ImportanceWeightedKLValidator
from effopd.evaluation.rollout_sources import FreshRollouts, TrainingBatchRollouts
from effopd.evaluation.routing import Teacher, Teachers
from effopd.evaluation.served_teacher import ServedTeacher
from effopd.evaluation.validators import (
    AccuracyValidation,
    RolloutValidator,
    accuracy_measure,
    teacher_kl_measure,
)
from effopd.models.policy import Policy
from effopd.objectives import FullVocabularyKL, PolicyGradient
from effopd.rollouts.engine import Engine
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.rollout import Writer
from effopd.rollouts.server import ServerEngine
from effopd.rollouts.vllm import VLLMEngine
from effopd.search.validation import Validator
from effopd.training.collect import Collector, rewards_differ
from effopd.training.critic import Critic
from effopd.training.learning import FullVocabularyLearner, Learner, SampledTokenLearner
from effopd.training.policy_learning import PolicyGradientLearner
from effopd.training.problems import check_teacher_prompts
from effopd.training.teachers import StudentAverage

EVALUATION_SEED = 0
"""The same held-out sampling for every run, so that runs are compared on equal terms."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects of one run; closed at its end, where some may hold processes or memory.

    `engine` writes for the student; None where its live model does.
    """

    config: RunConfig
    task: Task
    verifier: Verifier | None
    student: Policy
    teachers: Teachers | None
    reference: Policy | None
    average: StudentAverage | None
    engine: Engine | None = None

    def close(self) -> None:
        """Ends the verifier's processes, and gives back the engine's memory."""
        if isinstance(self.verifier, CountingVerifier):
            self.verifier.close()
        if isinstance(self.engine, VLLMEngine):
            self.engine.close()

    def _engine(self, policy: Teacher) -> Engine:
        if policy is self.student and self.engine is not None:
            return self.engine
        size = policy.vocabulary_size
        if isinstance(policy, ServedTeacher):
            return ServerEngine(
                policy.client,
                policy.api,
                policy.tokenizer,
                vocabulary_size=size,
                ends=self.student.end_ids,
            )
        return HFEngine(
            policy.model,
            policy.tokenizer,
            batch_size=self.config.train.rollout_batch,
            batch_tokens=self.config.memory.generation_tokens or None,
            during=policy.during,
            vocabulary_size=size,
        )

    def writer(self, policy: Teacher) -> Writer:
        """Writes with `policy` as the settings say."""
        return Writer(
            engine=self._engine(policy),
            tokenizer=policy.tokenizer,
            template=self.config.prompt,
            sampling=self.config.sampling,
        )

    def evaluator(self) -> Evaluator:
        """Evaluates on the first test problems."""
        problems = self.task.test[: self.config.evaluation.problems]
        return Evaluator(
            problems=problems,
            verifier=self.verifier,
            seed=EVALUATION_SEED,
            batch_tokens=self.config.memory.scoring_tokens,
        )

    def evaluate_student(self) -> Evaluation:
        """The student as it is now, with its divergence from the teacher if that is asked for."""
        teachers = self.teachers if self.config.evaluation.divergence else None
        return self.evaluator().evaluate(
            self.writer(self.student), student=self.student, teachers=teachers
        )

    def evaluate_teacher(self) -> Evaluation:
        """Each teacher on the problems that are its own."""
        assert self.teachers is not None
        evaluator, found = self.evaluator(), []
        for name, policy in self.teachers.policies.items():
            own = [p for p in evaluator.problems if self.teachers.name_for(p) == name]
            if own:
                check_teacher_prompts(self.config.prompt, policy.tokenizer, own)
                found.append(replace(evaluator, problems=own).evaluate(self.writer(policy)))
        return Evaluation(
            rollouts=tuple(rollout for each in found for rollout in each.rollouts),
            rewards=tuple(reward for each in found for reward in each.rewards),
            kl_nats=(),
            verdicts=sum_counts([each.verdicts for each in found]),
        )

    def learner(self) -> Learner:
        """The objective, applied to this student and its teachers."""
        objective = self.config.objective
        if isinstance(objective, PolicyGradient):
            return self._policy_learner(objective)
        assert self.teachers is not None  # RunConfig checked it
        if isinstance(objective, FullVocabularyKL):
            return FullVocabularyLearner(
                objective,
                self.student,
                self.teachers,
                self.reference,
                passes=self.config.train.epochs,
            )
        return SampledTokenLearner(
            objective,
            self.student,
            self.teachers,
            self.reference,
            scoring_tokens=self.config.memory.scoring_tokens,
        )

    def _policy_learner(self, objective: PolicyGradient) -> Learner:
        train = self.config.train
        return PolicyGradientLearner(
            objective,
            self.student,
            longest=self.config.sampling.max_new_tokens,
            reuses_rollouts=train.updates_per_step * train.epochs > 1,
            teachers=self.teachers,
            reference=self.reference,
            critic=Critic(self.student, lr=objective.critic_lr) if objective.needs_critic else None,
            scoring_tokens=self.config.memory.scoring_tokens,
        )

    def collector(self) -> Collector:
        """Writes the answers of a step.

        Raises:
            ConfigError: The objective needs rewards and the task has no verifier.
        """
        objective = self.config.objective
        collector = Collector(
            writer=self.writer(self.student),
            problems=self.task.train,
            settings=self.config.train,
            seed=self.config.seed,
        )
        if not isinstance(objective, PolicyGradient):
            return collector
        if self.verifier is None:
            raise ConfigError("objective.type = 'policy_gradient' needs a task with a verifier")
        collector = replace(collector, verifier=self.verifier)
        if objective.dynamic_sampling:
            refills = objective.max_refills
            return replace(collector, informative=rewards_differ, max_refills=refills)
        return collector

    def validator(self) -> Validator | None:
        """Scores the search's candidates; None without a search.

        Raises:
            ConfigError: Accuracy is asked for but the task has no verifier, or a divergence from a
                teacher that is not there.
        """
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
        assert self.teachers is not None  # RunConfig checked it
        temperature = getattr(self.config.objective, "teacher_temperature", 1.0)
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
