"""Rewards by a function of your own, given as a callable or named as `package.module:function`."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effopd.data.problem import Answer, Problem, Verifier
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
    module_name, _, name = path.partition(":")
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a module does when it is imported
        why = f"importing {module_name} failed with {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            package = module_name.partition(".")[0]
            why = f"{error}. Install the package, or put the directory of {package!r} on PYTHONPATH"
        elif isinstance(error, AttributeError):
            why = f"{module_name} has no {name!r}: name a function (problem, answer text) -> number"
        raise ConfigError(f"verifier = {path!r}: {why}") from error
    return as_verifier(found)
