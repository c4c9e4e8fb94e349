"""The reward of every answer is the same, so that the accept rule alone decides."""

from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> float:
    return 0.5
