"""Everything a run needs to continue bit for bit, as safetensors and JSON.

A checkpoint is a Hugging Face directory (`from_pretrained` works) plus `trainer_state.json`,
`optimizer.safetensors`, `anchor.safetensors` (with a search) and `generator.safetensors`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from effopd.core.extrapolator import Extrapolator
from effopd.errors import CheckpointError, NonFiniteError
from effopd.models.policy import Policy

VERSION = 1


@dataclass
class Progress:
    """Counters of a run; cumulative since step 0.

    Attributes:
        step: Optimizer updates done, skipped ones included.
        train_tokens: Tokens the student sampled for training.
        validation_tokens: Tokens the student sampled in searches.
        teacher_tokens: Tokens the teacher scored, in training and searches.
        skipped_steps: Updates skipped so far.
        skipped_in_a_row: Updates skipped since the last good one.
        elapsed_s: Wall time of training and searching.
        offsets: Bytes of each log that belong to this state.
    """

    step: int = 0
    train_tokens: int = 0
    validation_tokens: int = 0
    teacher_tokens: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    elapsed_s: float = 0.0
    offsets: dict[str, int] = field(default_factory=dict)

    @property
    def sampled_tokens(self) -> int:
        """Tokens the student sampled, validation included."""
        return self.train_tokens + self.validation_tokens


def save_state(
    directory: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    extrapolator: Extrapolator | None,
    progress: Progress,
) -> None:
    """Fills `directory` with model, tokenizer and trainer state.

    Raises:
        NonFiniteError: A parameter is NaN or infinite; nothing is saved then.
    """
    for name, parameter in policy.model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NonFiniteError(
                f"parameter {name} is not finite at step {progress.step}: it is not saved. Resume "
                "from the last checkpoint with a smaller learning rate."
            )
    policy.model.save_pretrained(directory)
    policy.tokenizer.save_pretrained(directory)
    state: dict[str, Any] = {"version": VERSION, "progress": asdict(progress)}
    names = {id(p): n for n, p in policy.model.named_parameters()}
    save_file(_optimizer_tensors(optimizer, names), directory / "optimizer.safetensors")
    save_file({"cpu": torch.get_rng_state()}, directory / "generator.safetensors")
    if extrapolator is not None:
        search_state = extrapolator.state_dict()
        save_file(search_state.pop("anchor"), directory / "anchor.safetensors")
        state["search"] = search_state
    (directory / "trainer_state.json").write_text(json.dumps(state, sort_keys=True))


def load_state(
    directory: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    extrapolator: Extrapolator | None,
) -> Progress:
    """Restores what `save_state` saved into live objects; verify the directory first.

    Raises:
        CheckpointError: The state is of another version or lacks a part.
    """
    state = json.loads((directory / "trainer_state.json").read_text())
    if state["version"] != VERSION or ("search" in state) != (extrapolator is not None):
        raise CheckpointError(
            f"{directory} was written by state version {state['version']} "
            f"{'with' if 'search' in state else 'without'} a search; this run needs version "
            f"{VERSION} {'with' if extrapolator else 'without'} one"
        )
    _load_model(policy.model, directory)
    names = {id(p): n for n, p in policy.model.named_parameters()}
    _load_optimizer(optimizer, names, load_file(directory / "optimizer.safetensors"))
    torch.set_rng_state(load_file(directory / "generator.safetensors")["cpu"])
    if extrapolator is not None:
        anchor = load_file(directory / "anchor.safetensors")
        extrapolator.load_state_dict({**state["search"], "anchor": anchor})
    return Progress(**state["progress"])


def _load_model(model: Any, directory: Path) -> None:
    """Copies the saved weights into the live parameters."""
    weights: dict[str, Tensor] = {}
    for shard in directory.glob("model*.safetensors"):
        weights |= load_file(shard)
    own = model.state_dict()
    missing = own.keys() - weights.keys() - set(model.all_tied_weights_keys)
    if missing or weights.keys() - own.keys():
        raise CheckpointError(f"{directory} holds the weights of another model: {sorted(missing)}")
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> dict[str, Tensor]:
    """State tensors by `parameter name/key`."""
    return {
        f"{names[id(parameter)]}/{key}": value.contiguous()
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor]
) -> None:
    by_name = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in by_name:
            raise CheckpointError(f"the optimizer state names an unknown parameter: {name}")
        parameter = by_name[name]
        placed = tensor if entry == "step" else tensor.to(parameter.device)
        optimizer.state.setdefault(parameter, {})[entry] = placed
