"""`search.jsonl` of a run in verl: one row a trial, in the format of effopd's own loop."""

import json
from pathlib import Path

from effopd.records import JsonlWriter, truncate_jsonl
from effopd.search.line_search import SearchResult
from effopd.training.rows import trial_row

NAME = "search.jsonl"


class SearchLog:
    """Appends the trials of each search.

    Args:
        directory: Where verl saves checkpoints.
        step: Step that the run goes on from; rows of later searches, which will be repeated, are
            cut off.
    """

    def __init__(self, directory: Path, step: int) -> None:
        path = directory / NAME
        JsonlWriter(path).close()  # repairs an unfinished line
        truncate_jsonl(path, _end_of(path, step))
        self._writer = JsonlWriter(path)

    def write(self, result: SearchResult) -> None:
        """One row a trial."""
        for index, trial in enumerate(result.trials):
            self._writer.write(trial_row(result.step, index, trial))


def _end_of(path: Path, step: int) -> int:
    """Bytes of the rows up to a step."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if json.loads(line)["step"] > step:
                break
            end += len(line)
    return end
