"""The settings of runs and evaluations: TOML in, frozen dataclasses out.

The only package that knows pydantic.
"""

from effopd.config.continuing import Changes, changes, reasons
from effopd.config.evaluation import EvalConfig, eval_toml, make_eval_config
from effopd.config.reading import differences, load_config, make_config, to_toml
from effopd.config.root import RunConfig

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
