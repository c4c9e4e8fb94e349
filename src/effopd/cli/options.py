"""What the commands share: arguments, exit status, and how errors are shown."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from effopd.errors import ConfigError, EffopdError
from effopd.records import display_text

STOPPED = 75
"""Exit status of a run that was asked to stop, saved, and can be resumed (`EX_TEMPFAIL`)."""

Recipe = Annotated[Path, typer.Argument(help="Recipe, a TOML file.", metavar="RUN.toml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, for example optimizer.lr=3e-4.")
]
Runs = Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

EvaluationTarget = Annotated[
    str | None,
    typer.Argument(help="Model directory or repository; without --bench a run.", metavar="MODEL"),
]
EvaluationOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, for example sampling.temperature=0.6.")
]
Benchmarks = Annotated[
    str | None, typer.Option(help="Benchmarks, for example aime24,math500,humaneval+.")
]
Samples = Annotated[int, typer.Option("--samples", "-n", min=1, help="Answers to each question.")]
BenchmarkFiles = Annotated[
    list[str] | None, typer.Option("--data", help="NAME=FILE instead of the hub; repeatable.")
]
EvaluationOut = Annotated[
    Path | None, typer.Option(help="Where answers go; runs/eval-MODEL by default.")
]
EvaluatedRun = Annotated[Path | None, typer.Option(help="Evaluate the checkpoints of this run.")]
Every = Annotated[int, typer.Option(min=1, help="Of a run: steps between checkpoints.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="First so many questions of each benchmark.")
]
Against = Annotated[
    Path | None, typer.Option(help="Another evaluation, to compare with question by question.")
]
SelfCheck = Annotated[
    bool, typer.Option("--self-check", help="Check the benchmarks' own solutions instead.")
]
CheckpointStep = Annotated[
    int | None, typer.Option(help="Without --bench: checkpoint; the newest by default.")
]
TestProblems = Annotated[
    int | None, typer.Option(help="Without --bench: test problems; the run's by default.")
]


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """Expected errors become one message and status 2 (settings) or 1 (everything else)."""
    try:
        yield
    except (EffopdError, OSError) as error:
        if debug:
            raise
        print(f"error: {display_text(str(error))}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
