"""What the directory of a comparison knows about its runs, readable without PyTorch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from effopd.comparison.plan import PlannedCell
from effopd.models.checkpoints import MANIFEST, checkpoint_path
from effopd.records import write_json_atomic

NAME = "cells.json"


def is_finished(directory: Path) -> bool:
    """Whether a run says that it is over and has its last checkpoint, which is not verified."""
    try:
        step = json.loads((directory / "run.json").read_bytes())["finished"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return step == 0 or (checkpoint_path(directory / "checkpoints", step) / MANIFEST).is_file()


class Ledger:
    """Settings that the runs of a comparison were checked under, and how many ran at a time.

    A finished run whose settings in the plan are those of the ledger, and whose `config.toml` is
    the one they resolved to, needs no second look.

    Args:
        out: Directory of the comparison.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._path = out, out / NAME
        self._known: dict[str, Any] = {"version": version("effopd"), "cells": {}, "workers": []}
        try:
            known = json.loads(self._path.read_bytes())
            self._known["workers"] = known["workers"]
            if known["version"] == version("effopd"):
                self._known["cells"] = known["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # missing or damaged: every run is checked in full, and it is written anew

    @property
    def workers(self) -> list[int]:
        """Numbers of processes that trained at a time, in order."""
        return list(self._known["workers"])

    def is_settled(self, cell: PlannedCell) -> bool:
        """Whether a run is finished under the settings that the plan gives it."""
        entry = self._known["cells"].get(cell.name)
        directory = self._out / cell.name
        if entry is None or entry["settings"] != cell.settings or not is_finished(directory):
            return False
        return bool(entry["config"] == _digest((directory / "config.toml").read_bytes()))

    def enter(self, cells: Sequence[PlannedCell], resolved: Mapping[str, str]) -> None:
        """Stores the settings of all runs and the `config.toml` that each resolves to."""
        for cell in cells:
            config = _digest(resolved[cell.name].encode())
            self._known["cells"][cell.name] = {"settings": cell.settings, "config": config}
        self._write()

    def count_workers(self, workers: int) -> None:
        """Remembers that runs were trained by `workers` processes at a time."""
        self._known["workers"] = sorted({*self._known["workers"], workers})
        self._write()

    def _write(self) -> None:
        write_json_atomic(self._path, {"schema": 1, **self._known})


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
