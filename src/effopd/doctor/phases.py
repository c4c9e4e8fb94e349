"""Memory and time of a run on one card, phase by phase, from its settings and models' sizes.

Seconds that nobody knows (no card, a server) are NaN until a phase is reported.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from effopd.doctor import footprint
from effopd.doctor.footprint import Bytes
from effopd.doctor.sizes import ModelShape
from effopd.evaluation.served_teacher import likely_bytes
from effopd.models.gpus import Gpu
from effopd.models.loading import ModelSettings
from effopd.training.config import Config
from effopd.training.optimizers import kept_numbers

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ENGINE_BYTES = 2 * 10**9
"""What vLLM takes beside weights and cache: the activations of 8,192 tokens, and CUDA graphs."""
A_STEP = ("writing", "scoring", "update")
"""The phases that every step has."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a step: its peak, and how long it takes; None where the card is not known."""

    name: str
    memory: Bytes
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A run with the sizes of its models by the name that the settings give them."""

    config: Config
    shapes: Mapping[str, ModelShape]

    @property
    def student(self) -> ModelSettings:
        """Settings of the student."""
        assert self.config.student is not None
        return self.config.student

    @property
    def shape(self) -> ModelShape:
        """Sizes of the student."""
        return self.shapes["student"]

    @cached_property
    def teachers(self) -> list[tuple[ModelShape, int]]:
        """Sizes and bytes a number of the teachers on this machine."""
        named = dict(self.config.teachers)
        if self.config.teacher is not None:
            named["teacher"] = self.config.teacher
        if self.config.self_teacher is not None and not named:
            named["student"] = self.student
        return [
            (self.shapes.get(f"teachers.{name}") or self.shapes[name], ELEMENT_BYTES[each.dtype])
            for name, each in named.items()
        ]

    @cached_property
    def scoring(self) -> list[tuple[ModelShape, int]]:
        """Teachers and the reference model, which may be a copy of the student."""
        if not self.config.objective.needs_reference:
            return self.teachers
        if (reference := self.config.reference) is not None:
            return [*self.teachers, (self.shapes["reference"], ELEMENT_BYTES[reference.dtype])]
        copied = [] if self.student.lora else [(self.shape, ELEMENT_BYTES[self.student.dtype])]
        return [*self.teachers, *copied]

    @property
    def answers(self) -> int:
        """Answers a step."""
        return self.config.train.prompts_per_step * self.config.train.responses_per_prompt

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer."""
        return self.config.prompt.max_tokens + self.config.sampling.max_new_tokens

    @property
    def passes(self) -> int:
        """Forward passes without gradient that a trained token costs, all epochs together."""
        return (4 if self.student.gradient_checkpointing else 3) * self.config.train.epochs


@dataclass(frozen=True, kw_only=True)
class Estimate(Sized):
    """A run on a card, None where only memory is asked for.

    Prompts and answers are taken to be as long as they may be: the most that can happen.
    `served_width` is that of the hidden states of a teacher behind our server, with the bytes of a
    number; None where it is not known, and counts nothing.
    """

    gpu: Gpu | None = None
    served_width: tuple[int, int] | None = None

    def phases(self) -> list[Phase]:
        """The phases of a step in their order, each with what is on the device throughout."""
        config, shape, element, longest = self.config, self.shape, self._element, self.longest
        evaluation, validation = config.evaluation, config.validation
        found: list[Phase] = []

        def add(name: str, device: int, seconds: float) -> None:
            memory = self._kept + Bytes(device=device)
            known = None if math.isnan(seconds) else seconds
            found.append(Phase(name=name, memory=memory, seconds=known))

        add("writing", *self._written(self.answers))
        # The largest pass of a teacher or the reference over a portion, without gradient.
        if self.scoring:
            tokens, passes = config.memory.scoring_tokens, 1.0
            if self.config.objective.needs_vocabulary:  # what is not kept is read in every epoch
                share = self._kept_states[1]
                passes = share + config.train.epochs * (1 - share)
            device = max(self._passed_bytes(*each, max(longest, tokens)) for each in self.scoring)
            seconds = self._passes([each for each, _ in self.scoring], self.answers)
            add("scoring", device, passes * seconds)
        losses = 2 if self.config.objective.needs_critic else 1
        seconds = self._passes([shape] * (losses * self.passes), self.answers)
        add("update", self._updated_bytes(losses), seconds)
        # One scored point: answers written anew, and scored by student and teacher; on the tip's
        # answers by the student alone.
        if config.searches:
            device, seconds = 0, 0.0
            if validation.type != "importance_kl":
                device, seconds = self._written(validation.prompts)
            if validation.type != "accuracy":
                portion = max(longest, config.memory.scoring_tokens)
                passed = footprint.passing_bytes(shape, portion, element)
                passed += footprint.tile_bytes(shape, portion) + footprint.mask_bytes(
                    portion, longest
                )
                others = (self._passed_bytes(*each, portion) for each in self.teachers)
                device = max(device, passed, *others)
                anew = self.teachers if validation.type == "teacher_kl" else []
                readers = [shape, *(each for each, _ in anew)]
                seconds += self._passes(readers, validation.prompts)
            add("one trial of the search", device, seconds)
        # Before the first step the teacher writes, by transformers whatever the engine.
        if evaluation.problems and evaluation.teacher and self.teachers:
            answers, new = evaluation.problems, config.sampling.max_new_tokens
            width, gpu, decoded, seconds = self._width(answers), self._timed, [0], 0.0
            for each, size in self.teachers:
                if not self._scores_elsewhere:
                    arriving = self._arriving(each, size)
                    decoded.append(self._decoded_bytes(each, size, width) + arriving)
                seconds += math.nan if gpu is None else (
                    footprint.writing_seconds(each, answers, new, width, size, gpu, launched=True)
                )  # fmt: skip
            add("evaluation of the teacher", max(decoded), seconds)
        return found

    def checkpoint_bytes(self) -> int:
        """One checkpoint: weights, masters, averages, moments, and what the search remembers."""
        (trained, element), masters = self._trained, self.config.memory.master_weights
        precise = 4 if masters else element
        remembered = 2 * precise * bool(self.config.searches)
        critic = 3 * self._critic_bytes // 4
        held = trained * (element + 4 * masters + remembered) + precise * self._optimizer_numbers
        last = 0 if masters or not self._average_bytes else trained * element
        return held + self._average_bytes + last + critic

    # What stays from phase to phase -------------------------------------------------------------

    @property
    def _element(self) -> int:
        return ELEMENT_BYTES[self.student.dtype]

    @cached_property
    def _trained(self) -> tuple[int, int]:
        """How many numbers are trained, and the bytes of one of them."""
        lora = self.student.lora
        if lora is None:
            return self.shape.parameters, self._element
        return self.shape.adapter_parameters(lora.r, lora.target_modules), 4

    @property
    def _scores_elsewhere(self) -> bool:
        """Whether teachers have a device of their own, which is not judged."""
        return self.config.teacher_device not in {None, self.config.device}

    @cached_property
    def _optimizer_numbers(self) -> int:
        """Of adapters, whose shapes are not told apart, as many a parameter as of the model."""
        trained, whole = self._trained[0], self.shape.parameters
        kept = kept_numbers(self.config.optimizer, self.shape.tensors)
        return kept if trained == whole else round(trained * kept / whole)

    @property
    def _average_bytes(self) -> int:
        """The average of weights: one copy in float32, or the points of its window."""
        trained, element = self._trained
        average = self.config.average
        precise = 4 if self.config.memory.master_weights else element
        return trained * (precise * average.window + max(4, precise) * bool(average.decay))

    @property
    def _critic_bytes(self) -> int:
        """Weights, gradients and moments of PPO's critic, in the student's precision."""
        whole = 4 * self._element * self.shape.parameters
        return whole if self.config.objective.needs_critic else 0

    @cached_property
    def _kept(self) -> Bytes:
        memory, (trained, element) = self.config.memory, self._trained
        masters = memory.master_weights
        kept = footprint.trained_bytes(
            trained, element, masters=masters, offload=memory.offload_optimizer,
            kept=self._optimizer_numbers,
        )  # fmt: skip
        average = self._average_bytes
        kept += Bytes(host=average) if memory.offload_optimizer else Bytes(device=average)
        kept += Bytes(device=footprint.CONTEXT_BYTES + self._critic_bytes)
        if self.student.lora is not None:
            kept += Bytes(device=self.shape.parameters * self._element)
        if self.config.searches:
            on_device = memory.anchor_device == "student"
            kept += footprint.search_bytes(trained, element, masters=masters, on_device=on_device)
        own = self.config.self_teacher
        is_current = own is not None and own.weights == "current"
        switched = own is not None and own.weights == "base" and self.student.lora is not None
        copies = self.scoring[len(self.teachers) :] if is_current or switched else self.scoring
        for shape, size in [] if self._scores_elsewhere else copies:
            arriving = self._arriving(shape, size)
            kept += Bytes(device=shape.parameters * size - arriving)
            kept += Bytes(host=shape.parameters * size if memory.teacher_offload else 0)
        if self.served_width is not None:  # the head of a server is beside the student
            kept += Bytes(device=self.shape.vocabulary * math.prod(self.served_width))
        states = self._kept_states[0]
        kept += (
            Bytes(host=states) if memory.teacher_states_device == "cpu" else Bytes(device=states)
        )
        if self.config.rollouts.engine == "vllm":
            waiting = self.shape.parameters * self._element  # asleep, its weights are on the host
            sleeps = self.config.rollouts.vllm.sleep
            kept += Bytes(host=waiting) if sleeps else Bytes(device=self._engine_bytes)
        return kept

    @cached_property
    def _kept_states(self) -> tuple[int, float]:
        """Bytes of hidden states kept of a batch or a search; the share of a batch with room."""
        config, served = self.config, self._served_token_bytes
        token, searched = served + sum(each.hidden * size for each, size in self.scoring), 0
        batch = self.answers * config.sampling.max_new_tokens * token
        batch = batch if config.objective.needs_vocabulary else 0
        if config.searches and config.validation.type == "importance_kl":
            token = served + sum(each.hidden * size for each, size in self.teachers)
            token += self.shape.hidden * self._element
            searched = config.validation.prompts * config.sampling.max_new_tokens * token
        room = config.memory.teacher_states_gb * 1e9
        return int(min(room, max(batch, searched))), min(1.0, room / max(1, batch))

    @property
    def _served_token_bytes(self) -> int:
        """What is kept of a token of a teacher behind a server."""
        server = self.config.teacher_server
        if self.served_width is not None:
            return math.prod(self.served_width)
        return likely_bytes(server.top_k) if server is not None and server.top_k else 0

    def _arriving(self, shape: ModelShape, element: int) -> int:
        """Bytes of an offloaded teacher that come for a pass: all but the head."""
        body = shape.parameters - shape.vocabulary * shape.hidden
        return body * element if self.config.memory.teacher_offload else 0

    # vLLM, and how much is written at a time ----------------------------------------------------

    @property
    def engine_needs(self) -> int:
        """The least that vLLM has to have: weights, the cache of one answer, room to run in."""
        cache = footprint.cache_bytes(self.shape, self.longest, self._element)
        return self.shape.parameters * self._element + cache + _ENGINE_BYTES

    @property
    def has_engine_room(self) -> bool:
        """Whether vLLM, where it writes, has what it needs in its share of the card."""
        needed = self.config.rollouts.engine == "vllm" and self.gpu is not None
        return not needed or self.engine_needs <= self._engine_bytes

    @property
    def _engine_bytes(self) -> int:
        """Its share of the card, or what it needs where the card is not known."""
        share = self.config.rollouts.vllm.gpu_memory
        return self.engine_needs if self.gpu is None else int(share * self.gpu.memory_bytes)

    def _width(self, answers: int) -> int:
        """Sequences that transformers writes together."""
        width = min(self.config.train.rollout_batch, answers)
        if self.config.memory.generation_tokens:
            width = min(width, max(1, self.config.memory.generation_tokens // self.longest))
        return width

    # Parts of phases ----------------------------------------------------------------------------

    @property
    def _timed(self) -> Gpu | None:
        return self.gpu if self.gpu is not None and self.gpu.flops and self.gpu.bandwidth else None

    def _written(self, answers: int) -> tuple[int, float]:
        """Answers of the student: bytes on the device beside what stays, and seconds."""
        engine, gpu = self.config.rollouts.engine, self._timed
        if engine == "server":
            return 0, math.nan
        if engine == "hf":
            width = self._width(answers)
            device = self._decoded_bytes(self.shape, self._element, width)
        else:  # as many as the cache has room for, all as long as they may be
            one = footprint.cache_bytes(self.shape, self.longest, self._element)
            width = 1 + max(0, self._engine_bytes - self.engine_needs) // max(1, one)
            device = self._engine_bytes if self.config.rollouts.vllm.sleep else 0
        if gpu is None:
            return device, math.nan
        reading = footprint.forward_seconds(
            self.shape, answers * self.config.prompt.max_tokens, gpu
        )
        new, hf = self.config.sampling.max_new_tokens, engine == "hf"
        return device, reading + footprint.writing_seconds(
            self.shape, answers, new, width, self._element, gpu, launched=hf
        )

    def _decoded_bytes(self, shape: ModelShape, element: int, width: int) -> int:
        """Transformers: the prompts' pass, or later the cache, a layer of it twice, and logits.

        The sampler holds logits in float32, their softmax and its sum in float64.
        """
        prompts = width * self.config.prompt.max_tokens
        reading = footprint.passing_bytes(shape, prompts, element) + footprint.cache_bytes(
            shape, prompts, element
        )
        reading += footprint.mask_bytes(prompts, self.config.prompt.max_tokens)
        cache = footprint.cache_bytes(shape, width * self.longest, element)
        logits = (4 + 4 + 8) * width * shape.vocabulary
        return max(reading, cache + cache // max(1, shape.layers)) + logits

    def _passes(self, shapes: list[ModelShape], answers: int) -> float:
        """Seconds of one pass of each model over that many answers; NaN without a card."""
        tokens, gpu = answers * self.longest, self._timed
        if gpu is None:
            return math.nan
        return sum(footprint.forward_seconds(each, tokens, gpu, self.longest) for each in shapes)

    def _passed_bytes(self, shape: ModelShape, element: int, tokens: int) -> int:
        """A pass of a teacher or the reference, and the weights that come for it."""
        if self._scores_elsewhere:
            return 0
        passed = footprint.passing_bytes(shape, tokens, element) + footprint.tile_bytes(
            shape, tokens
        )
        return passed + footprint.mask_bytes(tokens, self.longest) + self._arriving(shape, element)

    def _updated_bytes(self, losses: int) -> int:
        """Forward and backward of a micro-batch, or later the optimizer's step.

        Of two losses both are summed before the backward pass; AdamW's step on a GPU has a copy.
        """
        shape, element, memory = self.shape, self._element, self.config.memory
        portion = max(self.longest, self.config.train.micro_batch_tokens)
        checkpointing = self.student.gradient_checkpointing
        device = footprint.activation_bytes(shape, portion, element, checkpointing=checkpointing)
        device += footprint.gradient_bytes(shape, portion, element) + footprint.mask_bytes(
            portion, self.longest
        )
        device = losses * device + footprint.tile_bytes(shape, portion)
        if self.student.lora is None:
            device += footprint.head_gradient_bytes(shape, element)
        if self.config.objective.needs_vocabulary:  # hidden states of who scored it
            device += sum(each.hidden * size * portion for each, size in self.scoring)
        trained, own = self._trained
        step = 0 if memory.offload_optimizer else trained * (4 if memory.master_weights else own)
        return max(device, step)


def step_seconds(phases: list[Phase]) -> float | None:
    """How long a step without a search takes; None where a phase has no estimate."""
    found = [phase.seconds for phase in phases if phase.name in A_STEP]
    return None if None in found else sum(each for each in found if each is not None)
