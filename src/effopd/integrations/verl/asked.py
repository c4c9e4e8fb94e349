"""A search whose scores come from elsewhere: it stops at each question and goes on when told.

The extrapolator calls its validator and waits. Here the validator is another process, reached only
between two calls of this one. So the search runs in a thread of its own that is asleep whenever the
process does something else, and its decisions are those of `Extrapolator` itself.
"""

from queue import SimpleQueue
from threading import Thread
from types import TracebackType

import torch

from effopd.errors import ValidatorError
from effopd.search.extrapolator import Extrapolator
from effopd.search.line_search import SearchResult
from effopd.search.validation import Draw, Score

Step = Draw | SearchResult | None
"""What a search comes to: a question, its result, or None where none was due."""


class AskedSearch:
    """Runs searches of an extrapolator that was built with `self.validate`.

    Args:
        device: Device of the parameters, made the current one of the thread too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: SimpleQueue[Step | BaseException] = SimpleQueue()
        self._answers: SimpleQueue[Score | ValidatorError] = SimpleQueue()
        self._is_open = False

    def validate(self, draw: Draw) -> Score:
        """The validator of the extrapolator: asks, and waits for `tell` or `abandon`."""
        self._steps.put(draw)
        answer = self._answers.get()
        if isinstance(answer, ValidatorError):
            raise answer
        return answer

    def start(self, extrapolator: Extrapolator, step: int) -> Step:
        """Begins `extrapolator.step(step)`.

        Args:
            extrapolator: Whose validator is `self.validate`.
            step: Optimizer updates done.

        Returns:
            The first draw to score with the parameters as they are now, or None without a search.
        """
        assert not self._is_open, "a search has to be told its scores before the next one starts"
        self._is_open = True
        # A daemon: a search that waits must not keep the process from ending.
        Thread(target=self._run, args=(extrapolator, step), daemon=True).start()
        return self._next()

    def _run(self, extrapolator: Extrapolator, step: int) -> None:
        """The thread."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        with _Forwarded(self._steps):
            self._steps.put(extrapolator.step(step))

    def tell(self, score: Score) -> Step:
        """Goes on with the score of the last draw.

        Args:
            score: Of the parameters as they were.

        Returns:
            The next draw to score, or the result: then the parameters are where the search ended.
        """
        assert self._is_open, "no search waits for a score"
        self._answers.put(score)
        return self._next()

    def abandon(self, reason: str) -> None:
        """Ends the search without a result: the parameters are back at the tip.

        Args:
            reason: Why there is no score.
        """
        if not self._is_open:
            return
        refusal = ValidatorError(reason)
        self._answers.put(refusal)
        try:
            self._next()
        except ValidatorError as error:
            if error is not refusal:
                raise

    def _next(self) -> Step:
        """Waits for the next question or the end; raises what the search raised."""
        item = self._steps.get()
        self._is_open = isinstance(item, Draw)
        if isinstance(item, BaseException):
            raise item
        return item


class _Forwarded:
    """Hands an error over instead of raising it, whatever it is: another thread will raise it."""

    def __init__(self, steps: SimpleQueue[Step | BaseException]) -> None:
        self._steps = steps

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is not None:
            self._steps.put(error)
        return error is not None
