"""Everything a run needs to continue bit for bit, as safetensors and JSON.

A checkpoint is a Hugging Face directory (`from_pretrained` works, inference servers load it) plus
`trainer_state.json` and the folder `trainer/`: servers take every safetensors file beside a model
for a part of it. The folder holds `optimizer.safetensors`, and where they exist
`masters.safetensors` (of a student in low precision), the state of the search (see
`effopd.training.search_checkpoint`), `learner.safetensors` (a critic, or how teachers behind
servers scored a fixed text), `average.safetensors` (a teacher that follows the student) and
`monitor.safetensors`; where the model is an average of weights, `trained.safetensors` has the last
ones (unless masters do) and `weight_average.safetensors` what it is made of. Of a student with
adapters the Hugging Face directory is that of the adapter, in PEFT's format. No random state: every
random number is a function of seed and step.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from effopd.errors import CheckpointError, NonFiniteError
from effopd.models.loading import ModelSettings, load_model
from effopd.models.lora import load_adapters_, save_adapters, trains_adapters
from effopd.models.policy import Policy
from effopd.models.saving import save_model, save_tokenizer
from effopd.search.extrapolator import Extrapolator
from effopd.training.optimizers import load_optimizer_, save_optimizer
from effopd.training.search_checkpoint import (
    read_search,
    restore_search,
    save_search,
    search_file,
)

VERSION = 5
FOLDER = "trainer"
STATE = "trainer_state.json"


@dataclass
class Progress:
    """Counters of a run; cumulative since step 0, steps whose update was skipped included.

    `train_tokens` and `validation_tokens` were sampled by the student, `teacher_tokens` scored by
    the teacher; `student_passes` are tokens that the student read, three times with a gradient and
    without what it wrote; `cpu_s` are seconds of this process; `offsets` are the bytes of each log
    that belong to this state.
    """

    step: int = 0
    train_tokens: int = 0
    validation_tokens: int = 0
    teacher_tokens: int = 0
    student_passes: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    offsets: dict[str, int] = field(default_factory=dict)

    @property
    def sampled_tokens(self) -> int:
        """Tokens the student sampled, validation included."""
        return self.train_tokens + self.validation_tokens


class Stateful(Protocol):
    """Something beside the student that must come back bit for bit."""

    def state(self) -> dict[str, Tensor]:
        """Its tensors by name."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The live objects a checkpoint is made of; `moved` is what the optimizer moves, by name.

    Inside `averaged` the policy has the weights that the model directory is to hold; `trained` are
    then the others.
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    moved: Mapping[str, Tensor]
    extrapolator: Extrapolator | None
    learner: Stateful
    average: Stateful | None
    monitor: Stateful | None
    masters: Stateful | None = None
    trained: Stateful | None = None
    weight_average: Stateful | None = None
    averaged: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def others(self) -> dict[str, Stateful]:
        """File name -> what may have tensors of its own."""
        names = ("masters", "learner", "average", "monitor", "trained", "weight_average")
        found = ((name, getattr(self, name)) for name in names)
        return {name: part for name, part in found if part is not None}


def save_state(directory: Path, saved: Saved, progress: Progress) -> None:
    """Fills `directory` with model, tokenizer and trainer state."""
    policy = saved.policy
    for name, parameter in policy.model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NonFiniteError(
                f"parameter {name} is not finite at step {progress.step}: it is not saved. Start "
                "a new run (--out) with a smaller optimizer.lr, or from an earlier checkpoint of "
                "this one (student.path)."
            )
    with saved.averaged():
        if trains_adapters(policy.model):
            save_adapters(policy.model, directory)
        else:
            save_model(policy.model, directory, policy.end_ids)
    save_tokenizer(policy.tokenizer, directory)
    folder = directory / FOLDER
    folder.mkdir()
    save_optimizer(folder / "optimizer.safetensors", saved.optimizer, saved.moved)
    if saved.extrapolator is not None:
        save_search(search_file(folder), saved.extrapolator)
    for name, part in saved.others.items():
        if tensors := part.state():
            save_file(tensors, folder / f"{name}.safetensors")
    state = {"version": VERSION, "progress": asdict(progress)}
    (directory / STATE).write_text(json.dumps(state, sort_keys=True))


def load_state(directory: Path, saved: Saved) -> Progress:
    """Restores what `save_state` saved into live objects; verify the directory first."""
    state = _read_state(directory)
    policy, extrapolator = saved.policy, saved.extrapolator
    search = search_file(directory / FOLDER)
    if search.is_file() != (extrapolator is not None):
        raise CheckpointError(
            f"{directory} was written {'with' if search.is_file() else 'without'} a search, this "
            f"run is {'with' if extrapolator else 'without'} one: it belongs to another run"
        )
    if trains_adapters(policy.model):
        load_adapters_(policy.model, directory)
    else:
        _load_model(policy.model, directory)
    folder = directory / FOLDER
    load_optimizer_(folder / "optimizer.safetensors", saved.optimizer, saved.moved)
    for name, part in saved.others.items():
        if part.state() or (folder / f"{name}.safetensors").is_file():
            part.load_state(load_tensors(directory, name))
    if extrapolator is not None:  # last: it looks at the weights that it moves
        restore_search(extrapolator, read_search(search), search)
    return Progress(**state["progress"])


def _read_state(directory: Path) -> dict[str, Any]:
    """Content of `trainer_state.json`, of the version known here."""
    path = directory / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        version, counters = state["version"], set(state["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no state of a trainer ({error!r})") from None
    known = set(Progress.__dataclass_fields__)
    if version != VERSION or counters != known:
        raise CheckpointError(
            f"{path} has state version {version}, this effopd reads version {VERSION} (counters "
            f"that only one of them has: {sorted(counters ^ known)}). Resume with the effopd that "
            "wrote it (run.json names its version), or start a new run with --out."
        )
    return state


def saved_anchor(checkpoint: Path) -> dict[str, Tensor] | None:
    """The anchor that a checkpoint holds; None without a search."""
    path = search_file(checkpoint / FOLDER)
    return read_search(path)["anchor"] if path.is_file() else None


def load_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Tensors of the trainer that a checkpoint has."""
    path = checkpoint / FOLDER / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _load_model(model: Any, directory: Path) -> None:
    """Copies the saved weights into the live parameters.

    Through `from_pretrained`, because files and parameters need not have the same names: tied
    tensors are saved once, experts one by one. Eager attention is what every model has.
    """
    dtype: Any = str(model.dtype).removeprefix("torch.")
    settings = ModelSettings(path=str(directory), dtype=dtype, attention="eager")
    own, saved = model.state_dict(), load_model(settings).state_dict()
    different = {n for n in own.keys() & saved.keys() if own[n].shape != saved[n].shape}
    different |= own.keys() ^ saved.keys()
    if different:
        raise CheckpointError(
            f"{directory} holds the weights of another model: {sorted(different)[:3]} "
            f"({len(different)} tensors in all) are missing, unknown or of another shape"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
