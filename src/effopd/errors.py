"""Every error effopd raises on purpose.

Each is also a standard-library class, so callers may catch either. A message says what was given,
what was expected and what to do about it.
"""

TROUBLESHOOTING = "docs/troubleshooting.md"


def see(section: str) -> str:
    """The end of a message that sends its reader to a section of the troubleshooting page."""
    return f" (see {TROUBLESHOOTING}#{section})"


class EffopdError(Exception):
    """Root of the family: `except EffopdError` catches what effopd raises on purpose."""


class ConfigError(EffopdError, ValueError):
    """A setting is unknown, mis-typed or contradicts another one."""


class ParameterMismatchError(EffopdError, ValueError):
    """Tensors that must agree in name, shape, dtype or vocabulary size do not."""


class NonFiniteError(EffopdError, ArithmeticError):
    """A NaN or an infinity turned up where only finite numbers make sense."""


class ValidatorError(EffopdError, RuntimeError):
    """A validator broke its contract, for instance by changing the parameters it scores."""


class CheckpointError(EffopdError, OSError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class RecordError(EffopdError, ValueError):
    """A record on disk cannot be read or has an unknown schema."""


class RunLockedError(EffopdError, OSError):
    """Another process is already writing to this run directory."""


class ServerError(EffopdError, OSError):
    """An inference server cannot be reached, answers wrongly, or serves another model."""


class MissingExtraError(EffopdError, ImportError):
    """An optional dependency is needed for what was asked."""
