"""The searches of a run that does not take place, by running the search on made-up scores."""

from collections.abc import Iterator
from dataclasses import dataclass

from effopd.search.line_search import LineSearch, SearchResult
from effopd.search.scales import PastSearch
from effopd.search.settings import Search
from effopd.search.validation import Score


@dataclass(frozen=True, kw_only=True)
class SimulatedSearch:
    """What one search does.

    Attributes:
        step: After which step.
        evaluations: Points scored, the tip among them.
        candidates: Points ahead of the tip, or behind it, that were tried.
        accepted: Of them, those that were accepted.
        copies: Times that as much as the moved tensors goes over the bus between a GPU and its
            host, where anchor and tip are on the host.
    """

    step: int
    evaluations: int
    candidates: int
    accepted: int
    copies: int


def simulated_searches(search: Search, steps: int, *, helpful: bool) -> Iterator[SimulatedSearch]:
    """The searches of `steps` steps, from the schedule, scales and rules that a run would use.

    Args:
        search: Settings.
        steps: Steps of the run.
        helpful: Whether each point scores higher than all before it, so that the search goes as
            far as it may; otherwise each scores lower, and nothing is accepted.

    Yields:
        One search after another.
    """
    past: list[PastSearch] = []
    for step in range(1, steps + 1):
        if not search.schedule.is_due(step, past):
            continue
        line, value = LineSearch(search, step, past), 0.0
        while line.ask() is not None:
            value += 1.0 if helpful else -1.0
            line.tell(Score(value=value, per_prompt=(value, value)))
        result = line.result
        candidates = [trial for trial in result.trials if trial.kind == "candidate"]
        yield SimulatedSearch(
            step=step,
            evaluations=sum(trial.score is not None for trial in result.trials),
            candidates=len(candidates),
            accepted=sum(bool(trial.accepted) for trial in candidates),
            copies=_copies(search, result),
        )
        past.append(result.as_past)


def _copies(search: Search, result: SearchResult) -> int:
    """Transfers of `Ray`: the tip is captured, points are written, the anchor advances."""
    copies, here = 1, 1.0
    scored = [trial.scale for trial in result.trials if trial.score is not None]
    for scale in (*scored, result.accepted_scale):
        if scale != here:
            copies += 1 if scale in {0.0, 1.0} else 2  # an end alone, or both ends
        here = scale
    following = search.direction.anchor_scale(result.accepted_scale)
    return copies + (following not in {0.0, 1.0} and following == here)
