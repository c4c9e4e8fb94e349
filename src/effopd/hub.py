"""A checkpoint of a run as a repository of the Hugging Face Hub: model, card, curve and recipe."""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from effopd.config.reading import to_toml
from effopd.data.smollm2 import SmolLM2
from effopd.data.world import TinyWorld
from effopd.errors import ConfigError, ServerError
from effopd.evaluation.statistics import Z_95, average
from effopd.figures import accuracy, reverse_kl, save_png
from effopd.models.checkpoints import verify_checkpoint
from effopd.models.directory import (
    ADAPTER_CONFIG,
    GENERATION,
    looks_local,
    read_object,
)
from effopd.models.saving import name_ends
from effopd.records import (
    MANIFEST,
    Row,
    Run,
    checkpoint_path,
    checkpoint_step,
    list_checkpoints,
    load_run,
    run_of_checkpoint,
    write_json_atomic,
    write_text_atomic,
)
from effopd.training.config import Config
from effopd.training.run import config_of_run
from effopd.training.state import STATE

DISTILLED = ["on-policy-distillation", "distillation"]
SITE = "https://arxiv.org/abs/2605.11739"
_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken"}
_FOLDERS = {"additional_chat_templates"}


def push_to_hub(
    run: str | Path,
    repo: str | None = None,
    *,
    to: str | Path | None = None,
    step: int | None = None,
    private: bool = False,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Uploads a checkpoint of a run to the Hugging Face Hub, or writes what would be uploaded.

    What is uploaded is what `transformers` loads: weights as safetensors, tokenizer, chat template
    and a generation_config.json with the tokens that answers were trained to end at; besides a
    model card (README.md), the curve as curve.png, and recipe.toml. The state of the trainer is
    left out, and so is every file that is not one of these.

    Args:
        run: Run directory.
        repo: Repository, "me/model"; it is made if need be.
        to: Directory to write instead, new or empty.
        step: Checkpoint; by default the best that was kept (`checkpoint.keep_best`), else the
            newest.
        private: Make a new repository private; a public one is refused then.
        license: Licence of the model, such as "apache-2.0".
        base_model: Repository of the student before training, where the run was given a directory.

    Returns:
        The address of the repository, or the directory.

    Raises:
        ConfigError: There is no such checkpoint, or the directory or repository cannot be taken.
        CheckpointError: The checkpoint is damaged.
        ServerError: The Hub refused, or cannot be reached.
        MissingExtraError: matplotlib, which draws the curve, is not installed.
    """
    if (repo is None) == (to is None):
        raise ConfigError("push to a repository (repo, --repo) or to a directory (to, --to)")
    if repo is not None and _repository(repo) is None:
        raise ConfigError(f"{repo!r} is no name of a repository: give its owner too, as me/model")
    target = None if to is None else Path(to)
    if target is not None and target.exists() and not (target.is_dir() and _is_empty(target)):
        raise ConfigError(f"{target} is there already: choose a new or empty directory (--to)")
    directory = Path(run)
    config = config_of_run(directory)
    records = load_run(directory)
    checkpoint = _checkpoint(records, step, best=config.checkpoint.keep_best)
    verify_checkpoint(checkpoint)
    # Beside the checkpoint its weights need no second copy; a directory is whole or not there.
    beside = directory if target is None else target.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".push-", dir=beside) as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        _copy_model(checkpoint, folder, _link if target is None else shutil.copyfile)
        _complete(folder, records, base_model)
        name = repo or Path(to or "").name
        _write_card(folder, records, config, checkpoint, name, license, base_model)
        if target is not None:
            os.replace(folder, target)
            return str(target)
        message = f"Step {checkpoint_step(checkpoint)} of {records.label}, by effopd"
        return upload(folder, name, private=private, message=message)


def _is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


def upload(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Makes a repository on the Hub if need be, and uploads a folder to it; its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise ConfigError(
                f"{repo} is there already and is public: make it private first, or choose another"
            )
        api.upload_folder(repo_id=address.repo_id, folder_path=str(folder), commit_message=message)
    except ConfigError:
        raise
    except HFValidationError as error:
        raise ConfigError(f"{repo} is no name of a repository: {error}") from None
    except (OSError, ValueError, HTTPError) as error:
        raise ServerError(
            f"cannot upload to {repo}: {error}. Log in with `hf auth login`, or write the folder "
            "with --to and upload it later."
        ) from error
    return str(address)


def _checkpoint(run: Run, step: int | None, *, best: bool) -> Path:
    """The checkpoint of a step; for None the newest, or the best where it was kept."""
    parent = run.directory / "checkpoints"
    found = list_checkpoints(parent)
    if not found:
        whole = run_of_checkpoint(run.directory)
        hint = f"; it is a checkpoint of {whole}" if whole else ""
        raise ConfigError(f"{run.directory} has no checkpoint{hint}: train it first")
    if step is None:
        return (run.best_checkpoint if best else None) or found[0]
    path = checkpoint_path(parent, step)
    if path not in found:
        known = ", ".join(str(checkpoint_step(each)) for each in reversed(found))
        raise ConfigError(f"{run.directory} has no checkpoint of step {step}; it has {known}")
    return path


# The folder ---------------------------------------------------------------------------------------


def _copy_model(checkpoint: Path, folder: Path, copy: Callable[[Path, Path], object]) -> None:
    """Copies what is part of the model, and nothing else."""
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint)
        is_ours = len(name.parts) == 1 and name.name in {MANIFEST, STATE}
        inside = len(name.parts) == 1 or name.parts[0] in _FOLDERS
        if path.is_file() and inside and not is_ours and path.suffix in _SUFFIXES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy(path, folder / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _complete(folder: Path, run: Run, base_model: str | None) -> None:
    """Adds the end tokens of an adapter, and the name of what it adapts."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    name_ends(folder / GENERATION, [*run.info.get("end_tokens", {}).values()])
    if base_model is not None:
        settings = read_object(folder / ADAPTER_CONFIG)
        write_json_atomic(
            folder / ADAPTER_CONFIG, settings | {"base_model_name_or_path": base_model}
        )


# The card -----------------------------------------------------------------------------------------


def _write_card(
    folder: Path, run: Run, config: Config, checkpoint: Path, repo: str, license: str | None,
    base_model: str | None,
) -> None:  # fmt: skip
    """Writes README.md, recipe.toml and curve.png."""
    from huggingface_hub import ModelCard

    step, is_adapter = checkpoint_step(checkpoint), (folder / ADAPTER_CONFIG).is_file()
    (student, teacher), data, recipe = _models(config, base_model), _data(config), _recipe(config)
    write_text_atomic(folder / "recipe.toml", recipe)
    ends = run.info.get("end_tokens") or {}
    last = next((row for row in reversed(run.metrics) if row["step"] <= step), {})
    versions = run.info.get("versions", {})
    card = ModelCard.from_template(
        _metadata(run, config, step, repo, student, teacher, data, license, is_adapter=is_adapter),
        template_str=files("effopd").joinpath("model_card.jinja").read_text("utf-8"),
        title=repo.split("/")[-1],
        repo=repo,
        site=SITE,
        student=_linked(student),
        teacher=_linked(teacher),
        data=_linked(data),
        step=step,
        config=config,
        is_best=checkpoint == run.best_checkpoint,
        preset="" if config.preset == "default" else config.preset,
        lr=f"{config.optimizer.lr:g}",
        end_tokens=", ".join(f"`{name}` ({token})" for name, token in ends.items()) or "-",
        is_adapter=is_adapter,
        results=_results(run, step),
        problems=next((row["n"] for row in run.evals), 0),
        measured=_evaluation(run, "student", step) is not None,
        curve=_draw_curve(run, folder / "curve.png"),
        sampled=f"{last.get('sampled_tokens', 0):,}",
        scored=f"{last.get('teacher_tokens', 0):,}",
        licence=_licence(license, student, teacher, data),
        recipe=recipe,
        fence="`" * (3 + max(map(len, re.findall("`+", recipe)), default=0)),
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        version=versions.get("effopd", ""),
    )
    write_text_atomic(folder / "README.md", str(card))


def _metadata(
    run: Run, config: Config, step: int, repo: str, student: str, teacher: str, data: str,
    license: str | None, *, is_adapter: bool,
) -> Any:  # fmt: skip
    """The fields that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    pushed, dataset = _evaluation(run, "student", step) or {}, _repository(data)
    base = _repository(student)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "effopd",
            dataset_name=f"{pushed['n']} held-out problems of the run",
            metric_type=name,
            metric_value=pushed[name],
        )
        for name in ("accuracy", "reverse_kl")
        if pushed.get(name) is not None
    ]
    return ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if is_adapter else "finetune") if base else None,
        teacher=_repository(teacher),
        datasets=[dataset] if dataset else None,
        license=license,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["effopd", *DISTILLED * config.needs_teacher, config.method_name],
        model_name=repo.split("/")[-1],
        eval_results=results or None,
    )


def _models(config: Config, base_model: str | None) -> tuple[str, str]:
    """Student before training and teacher: repositories, or what can be said of a directory."""
    base, taught = "the tiny world's base model", "the tiny world's teacher"
    if isinstance(config.task, SmolLM2):
        base = config.task.gguf or "SmolLM2-135M-Instruct"
        taught = f"{_named(base)}, taught {config.task.task} by effopd"
    student = config.student.path if config.student is not None else base
    if config.self_teacher is not None:
        teacher = f"its own weights ({config.self_teacher.weights})"
    elif config.teacher_server is not None:
        teacher = f"{config.teacher_server.model} behind a server"
    elif config.teacher is not None or config.teachers:
        named = [config.teacher, *config.teachers.values()]
        teacher = ", ".join(_named(each.path) for each in named if each is not None)
    else:
        teacher = taught if config.needs_teacher else ""
    return base_model or _named(student), teacher


def _named(path: str) -> str:
    """A repository as it is; of a directory its name alone, since its place concerns nobody."""
    return Path(path).name if looks_local(path) or Path(path).is_absolute() else path


def _repository(name: str) -> str | None:
    """What the metadata may name: a repository with an owner."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _linked(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if _repository(name) else name


def _data(config: Config) -> str:
    """Where the problems come from."""
    if isinstance(config.task, TinyWorld):
        return "chains of modular arithmetic, made by effopd"
    if isinstance(config.task, SmolLM2):
        return f"{config.task.task} of effopd's SmolLM2 world, made by effopd"
    trained = (config.task.train, *config.task.more)
    paths = [source.repo or source.path for source in trained]
    return ", ".join(path if "in memory" in path else _named(path) for path in paths)


def _licence(license: str | None, student: str, teacher: str, data: str) -> str:
    own = f"This model: {license}." if license else "This model: not stated by who uploaded it."
    scores = f"of the answers and scores of {teacher}, " if teacher else ""
    return (
        f"{own} The licences of what it was made from hold too: of {student}, {scores}and of the "
        f"problems ({data})."
    )


def _recipe(config: Config) -> str:
    """Every setting as TOML, without what tells of this machine."""
    text = to_toml(config).replace(f'"{Path.home()}/', '"~/')
    return re.sub(r'^(url = "https?://)[^/"]*', r"\1HOST", text, flags=re.MULTILINE)


def _evaluation(run: Run, model: str, step: int) -> Row | None:
    rows = (row for row in run.evals if row["model"] == model and row["step"] == step)
    return next(rows, None)


def _results(run: Run, step: int) -> list[Mapping[str, Any]]:
    """The untrained student, the one that is pushed, and the teacher, as far as they are known."""
    named = (("before training", "student", 0), ("this model", "student", step),
             ("teacher", "teacher", 0))  # fmt: skip
    found: list[Mapping[str, Any]] = []
    for name, model, at in named:
        row = _evaluation(run, model, at)
        if row is None:
            continue
        kl = row["reverse_kl"]
        found.append({
            "model": name,
            "step": "" if model == "teacher" else at,
            "accuracy": interval_text(row),
            "kl": "-" if kl is None else f"{kl:.4f}",
            "length": f"{row['mean_length']:.1f}",
        })  # fmt: skip
    return found


def interval_text(row: Row) -> str:
    """`0.812 [0.759, 0.856]`, the accuracy of a row of `evals.jsonl` and its 95% interval.

    Of answers that are right or wrong that of `average`; of others the mean and 1.96 of its
    standard errors to both sides, within [0, 1].
    """
    mean, error, n = row["accuracy"], row["accuracy_se"], row["n"]
    if mean is None:
        return "-"
    right = round(mean * n)
    ends: tuple[float, float] | None = None
    spread = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else None
    if error is not None and spread is not None and math.isclose(error, spread, abs_tol=1e-9):
        ends = average([[1.0]] * right + [[0.0]] * (n - right)).interval
    elif error is not None:
        ends = max(0.0, mean - Z_95 * error), min(1.0, mean + Z_95 * error)
    return f"{mean:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _draw_curve(run: Run, path: Path) -> str:
    """Draws accuracy, or divergence without it, against steps; what it shows, "" for nothing."""
    student = [row for row in run.evals if row["model"] == "student"]
    for name, key, figure in (
        ("accuracy", "accuracy", accuracy),
        ("reverse KL to the teacher", "reverse_kl", reverse_kl),
    ):
        if sum(row[key] is not None for row in student) > 1:
            save_png(figure([run]), path)
            return name
    return ""
