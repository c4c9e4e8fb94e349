"""The settings of runs and evaluations: TOML in, frozen dataclasses out.

The only package that knows pydantic.
"""

from effopd.config.reading import differences, load_config, make_config, to_toml
from effopd.evaluation.config import EvalConfig, eval_toml, make_eval_config
from effopd.training.config import RunConfig
from effopd.training.continuing import Changes, changes, reasons

__all__ = [
    "Changes",
    "EvalConfig",
    "RunConfig",
    "changes",
    "differences",
    "eval_toml",
    "load_config",
    "make_config",
    "make_eval_config",
    "reasons",
    "to_toml",
]
