"""Rewards by a function of your own, given as a callable or named as `package.module:function`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effopd.data.problem import Answer, Problem, Verifier, imported
from effopd.errors import ConfigError

Reward = Callable[[Problem, str], float]
"""(problem, text of an answer) -> its reward in [0, 1]."""


@dataclass(frozen=True)
class FunctionVerifier:
    """Asks a function for the reward of each answer, one after another.

    It is asked about answers that were cut at the length cap as well; a `Verifier`, which gets
    whole `Answer`s, sees which they are. What the function raises ends the run.

    """

    function: Reward

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """One reward per answer, in order; ConfigError where one is no number in [0, 1]."""
        found = []
        for answer in answers:
            reward = self.function(answer.problem, answer.completion)
            try:
                number = float(reward)
            except (TypeError, ValueError):
                number = float("nan")
            if not 0 <= number <= 1:
                name = getattr(self.function, "__qualname__", type(self.function).__name__)
                raise ConfigError(
                    f"reward function {name} gave {reward!r} for an answer to problem "
                    f"{answer.problem.id!r}: return a number from 0 to 1, as accuracies are shares "
                    "of right answers"
                )
            found.append(number)
        return found


def as_verifier(reward: Reward | Verifier) -> Verifier:
    """A verifier as it is, or one that asks a function of a problem and the text of an answer."""
    if isinstance(reward, type) and callable(getattr(reward, "rewards", None)):
        reward = reward()  # a class of verifiers
    if callable(getattr(reward, "rewards", None)):
        return reward  # type: ignore[return-value]
    if not callable(reward):
        raise ConfigError(
            f"a reward must be a function (problem, answer text) -> number, or an object with a "
            f"method rewards(answers), got {reward!r:.200}"
        )
    return FunctionVerifier(reward)


def imported_verifier(path: str) -> Verifier:
    """The verifier that `package.module:function` names: a function, or a verifier or its class."""
    hint = "name a function (problem, answer text) -> number"
    return as_verifier(imported(path, "verifier", hint))
