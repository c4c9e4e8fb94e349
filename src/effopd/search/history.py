"""What was recorded at regular steps, bounded: when there is too much the interval doubles."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from effopd.search.ray import check_fits

Entry = dict[str, Tensor]


class History:
    """Named tensors recorded at multiples of an interval.

    With more than `keep` entries the interval doubles and those between its multiples are dropped,
    so that what is kept always spans the whole run evenly.

    Args:
        every: First interval in steps.
        keep: Most entries kept, at least 2.
    """

    def __init__(self, every: int, keep: int) -> None:
        self._keep = keep
        self.interval = every
        self.entries: dict[int, Entry] = {}

    def is_due(self, step: int) -> bool:
        """Whether `step` is to be recorded."""
        return step % self.interval == 0

    def append_(self, step: int, entry: Entry) -> None:
        """Records `entry`, and drops every second one when there are too many."""
        self.entries[step] = entry
        if len(self.entries) > self._keep:
            self.interval *= 2
            self.entries = {s: e for s, e in self.entries.items() if self.is_due(s)}

    def tensors(self) -> dict[str, Tensor]:
        """All entries by flat names, `step-8/NAME`."""
        return {
            f"step-{step}/{name}": tensor
            for step, entry in self.entries.items()
            for name, tensor in entry.items()
        }

    def notes(self) -> dict[str, Any]:
        """Interval and recorded steps, JSON-able."""
        return {"interval": self.interval, "steps": list(self.entries)}

    def load_(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], like: Mapping[str, Tensor]
    ) -> None:
        """Restores `tensors()` and `notes()`.

        Args:
            tensors: Flat names to tensors; copied.
            notes: What goes with them.
            like: What one entry looks like: names, shapes, dtypes and device.

        Raises:
            ParameterMismatchError: A tensor is missing, extra, or of another shape or dtype.
        """
        steps = [int(step) for step in notes["steps"]]
        check_fits(tensors, {f"step-{s}/{name}": t for s in steps for name, t in like.items()})
        self.interval = int(notes["interval"])
        self.entries = {
            step: {
                name: tensors[f"step-{step}/{name}"].to(tensor.device, copy=True)
                for name, tensor in like.items()
            }
            for step in steps
        }
