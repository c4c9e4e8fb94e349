"""Contradictions between sections: each function yields what is wrong, the first is reported."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from effopd.data.smollm2 import SmolLM2, World
from effopd.data.world import TinyWorld
from effopd.training.optimizers import optimizer_contradictions
from effopd.training.teachers import alignment_contradictions

if TYPE_CHECKING:
    from effopd.training.config import Config


def contradictions(config: "Config") -> Iterator[str]:
    """Everything that is wrong with the sections together."""
    for found in (
        _of_models, _of_teacher_server, alignment_contradictions, _of_adapters, _of_memory,
        _of_rewards, optimizer_contradictions,
    ):  # fmt: skip
        yield from found(config)


def _of_models(config: "Config") -> Iterator[str]:
    """Every model that is needed is named; the tiny world brings student and teacher."""
    if isinstance(config.task, TinyWorld) and config.task.calculator and not config.environment:
        yield "task.calculator needs environment.name = 'effopd.data.world:Calculator'"
    differs = isinstance(config.task, TinyWorld) and config.task.teacher_differs_in == "tokens"
    if differs and not (config.alignment or config.self_teacher or config.teacher):
        yield "task.teacher_differs_in = 'tokens' needs [alignment], as teachers of other tokens do"
    if not isinstance(config.task, World):
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


def _of_teacher_server(config: "Config") -> Iterator[str]:
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
    if config.searches_by_teacher and not dense:
        yield f"validation.type = {config.validation.type!r} needs {whole}, or use 'accuracy'"
    if config.measures_divergence and not dense:
        yield f"evaluation.divergence needs {whole}, or set it to false"
    writes = server.flavor != "effopd"
    if config.evaluation.teacher and config.evaluation.problems and not writes:
        yield (
            "evaluation.teacher needs a server that writes answers, teacher_server.flavor = "
            "'effopd' scores them: set it to false"
        )


def _of_adapters(config: "Config") -> Iterator[str]:
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


def _of_memory(config: "Config") -> Iterator[str]:
    """Nothing is kept apart that moves or is not there; float16 alone cannot be trained."""
    own = config.self_teacher
    if config.memory.teacher_offload and own is not None and own.weights != "base":
        yield "memory.teacher_offload is for teachers that stay as they are"
    brought = config.task.dtype if isinstance(config.task, SmolLM2) else "float32"
    dtype = config.student.dtype if config.student is not None else brought
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


def _of_rewards(config: "Config") -> Iterator[str]:
    """What looks at rewards or accuracies needs someone who checks answers."""
    if config.train.stop.reward_patience and not config.objective.needs_rewards:
        yield "train.stop.reward_patience looks at rewards, which this objective does not have"
    if isinstance(config.task, World) or config.task.verifier != "none":
        return
    if config.searches and config.validation.type == "accuracy":
        yield "validation.type = 'accuracy' needs task.verifier; use validation.type = 'teacher_kl'"
    if config.objective.needs_rewards:
        yield f"objective.type = {config.objective.type!r} learns from rewards: set task.verifier"
    metric, stop = config.evaluation.metric, config.train.stop
    if stop.target or (stop.patience and not metric):
        yield "train.stop looks at accuracies: set task.verifier"
    if config.checkpoint.keep_best and not config.evaluation.divergence and not metric:
        yield (
            "checkpoint.keep_best looks at accuracies, or at divergences without them: set "
            "task.verifier or evaluation.divergence"
        )
