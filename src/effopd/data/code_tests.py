"""The tests of a programming problem: plain data, which never enters the process under test.

What a program prints or returns is compared with `outputs` by the process that reads them, in
`effopd.rewards.code`; only `inputs` are handed to the program.
"""

import keyword
from dataclasses import dataclass
from typing import Any, Literal, get_args

from effopd.errors import ConfigError

Rule = Literal[
    "tokens", "exact", "json", "value", "set", "presence",
    "root", "anything", "zero_too", "pyramid", "digit_distance",
]  # fmt: skip
"""How a result is compared with what is expected; `effopd.rewards.code_comparison` has the rules.

The first two compare printed text: words, and words of which none is a number.
The others compare returned values. Those in the second row are the problems for which EvalPlus
accepts more than the answer of its reference solution.
"""

_TEXT_RULES = ("tokens", "exact")


@dataclass(frozen=True, kw_only=True)
class CodeTests:
    """Inputs of a program with what it has to answer.

    Attributes:
        kind: "stdin" when each test is a text to read and a text to print; "call" when each is a
            list of arguments and a value to return.
        inputs: One text a test; for "call" one list of arguments, of plain built-ins: None, bool,
            int, float, complex, str, list, tuple, set and dict.
        outputs: What is expected, one per input; () when `reference` says it.
        entry_point: Name of the function for "call"; "" for "stdin". A method of this name in a
            class `Solution` serves as well.
        reference: Source of a right program, complete, whose results are what is expected; ""
            when `outputs` says it. It runs in the sandbox like any other.
        preamble: Source that stands before every program: imports, helper functions, a stub.
        rule: How results are compared.
        atol: Absolute tolerance of floats, as the rule uses it; every rule but "tokens" and "exact"
            allows at least 1e-6.
        is_wrapped: Whether every output is a list around the one value that is expected, as APPS
            writes them. The value and the list are then both right.
    """

    kind: Literal["stdin", "call"]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...] = ()
    entry_point: str = ""
    reference: str = ""
    preamble: str = ""
    rule: Rule = "tokens"
    atol: float = 0.0
    is_wrapped: bool = False

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ConfigError("inputs must hold at least one test, got none")
        if bool(self.outputs) == bool(self.reference):
            raise ConfigError("give either outputs or a reference that computes them")
        if self.outputs and len(self.outputs) != len(self.inputs):
            raise ConfigError(
                f"outputs must be one per input, got {len(self.outputs)} for {len(self.inputs)}"
            )
        if self.rule not in get_args(Rule):
            raise ConfigError(f"rule must be one of {get_args(Rule)}, got {self.rule!r}")
        if not 0 <= self.atol < 1:
            raise ConfigError(f"atol must be in [0, 1), got {self.atol}")
        if self.kind == "call":
            name = self.entry_point
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ConfigError(f"entry_point must be the name of a function, got {name!r}")
            if self.rule in _TEXT_RULES:
                raise ConfigError(
                    f"rule must be one for values when a function is called: {self.rule}"
                )
            for arguments in self.inputs:
                if not isinstance(arguments, list):
                    raise ConfigError(f"inputs must be lists of arguments, got {arguments!r:.60}")
            return
        if self.entry_point:
            raise ConfigError(f"entry_point must be '' for stdin, got {self.entry_point!r}")
        if self.rule not in _TEXT_RULES:
            raise ConfigError(f"rule must be one of {_TEXT_RULES} for stdin, got {self.rule!r}")
        for text in (*self.inputs, *self.outputs):
            if not isinstance(text, str):
                raise ConfigError(f"tests over stdin must be texts, got {text!r:.60}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f"tests over stdin must be Unicode, got {text!r:.60}: {error.reason} at "
                    f"{error.start}; leave the problem out"
                ) from None

    def __hash__(self) -> int:
        """Of what is cheap to hash: arguments may be lists."""
        return hash((self.kind, self.entry_point, self.reference, len(self.inputs)))
