"""Reading what the servers of a run wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from effopd.records import read_jsonl

Weights = dict[str, torch.Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """Weights that one server generated with.

    Attributes:
        weights: As they were in the server when it first generated.
        requests: What it generated with them, in order.
    """

    weights: Weights
    requests: list[Row]

    @property
    def is_search(self) -> bool:
        """Whether it was a point of a search; training requests have no seed."""
        return self.requests[0]["seed"] is not None

    @property
    def step(self) -> int:
        """Step that its weights belong to, as verl told the server."""
        return self.requests[0]["step"]


def versions(out: Path, server: int) -> list[Version]:
    """Every version of a server, in order."""
    folder = out / "servers" / f"hf_server_{server}"
    rows = read_jsonl(folder / "requests.jsonl")
    return [
        Version(load_file(path), [row for row in rows if row["version"] == int(path.stem)])
        for path in sorted(folder.glob("*.safetensors"))
    ]


def points(out: Path, server: int, step: int) -> list[Version]:
    """The points of the search after a step, in order."""
    return [each for each in versions(out, server) if each.is_search and each.step == step]


def trained_with(out: Path, server: int, step: int) -> Weights:
    """Weights that wrote the training answers of a step."""
    found = [v for v in versions(out, server) if not v.is_search and v.step == step - 1]
    assert len(found) == 1
    return found[0].weights


def trials(out: Path, step: int) -> list[Row]:
    """Rows of `search.jsonl` of a step."""
    rows = read_jsonl(out / "checkpoints" / "search.jsonl")
    return [row for row in rows if row["step"] == step]
