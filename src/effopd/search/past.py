"""What a search leaves for the rules of the next ones: when it was and how far it went."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PastSearch:
    """An earlier search of the run.

    Attributes:
        step: Optimizer step of the search.
        accepted_scale: Where it left the parameters; 1.0 is the tip (nothing accepted).
        rate_change: What a learning rate that follows is multiplied by after it.
    """

    step: int
    accepted_scale: float
    rate_change: float = 1.0

    @property
    def is_rejection(self) -> bool:
        """Whether it left the parameters at the tip."""
        return self.accepted_scale == 1.0
