"""`effopd`: the commands. Imports wait until a command runs, so that `--help` is instant."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from effopd.errors import ConfigError, EffopdError
from effopd.records import display_text

app = typer.Typer(
    help="Fast on-policy distillation of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data = typer.Typer(
    help="Look at the problems of a recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")

STOPPED = 75
"""Exit status of a run that was asked to stop, saved, and can be resumed (`EX_TEMPFAIL`)."""

Recipe = Annotated[Path, typer.Argument(help="Recipe, a TOML file.", metavar="RUN.toml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, for example optimizer.lr=3e-4.")
]
Runs = Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where runs and report go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the runs.")] = 0,
    debug: Debug = False,
) -> None:
    """Train a tiny student with and without the search; write a report. Minutes, no download."""
    with _errors(debug):
        from effopd.cli.demo import run_demo

        raise typer.Exit(0 if run_demo(out, seed) else STOPPED)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; runs/NAME_OF_RECIPE by default.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings and stop.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train as a recipe says, or resume the run in the directory."""
    with _errors(debug):
        from effopd.cli.run import run_recipe

        directory = out or Path("runs") / recipe.stem
        finished = run_recipe(recipe, overrides or [], directory, print_config=print_config)
        raise typer.Exit(0 if finished else STOPPED)


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    step: Annotated[int | None, typer.Option(help="Checkpoint; the newest by default.")] = None,
    problems: Annotated[
        int | None, typer.Option(help="Test problems; the run's number by default.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Evaluate a checkpoint of a run on its test problems."""
    with _errors(debug):
        from effopd.cli.run import evaluate_checkpoint

        evaluate_checkpoint(run, step, problems)


@app.command()
def report(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="Page to write; report.html in the first run by default.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw one or several runs into a single self-contained page, with PNG copies beside it."""
    with _errors(debug):
        from effopd.cli.report import report_runs

        report_runs(runs, out or runs[0] / "report.html")


@app.command()
def compare(
    plan: Annotated[Path, typer.Argument(help="Plan, a TOML file.", metavar="PLAN.toml")],
    out: Annotated[
        Path | None, typer.Option(help="Where runs and results go; runs/compare-NAME by default.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; one per core by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Apply the plan's [quick] section.")
    ] = False,
    list_runs: Annotated[bool, typer.Option("--list", help="Print the runs and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Train every method of a plan in every world; write tables, figures and a page. Resumes."""
    with _errors(debug):
        from effopd.cli.compare import Request, list_cells, run_compare

        asked = Request(plan=plan, out=out, workers=workers, quick=quick, debug=debug)
        if list_runs:
            list_cells(asked)
            return
        raise typer.Exit({"finished": 0, "failed": 1, "stopped": STOPPED}[run_compare(asked)])


@app.command()
def reproduce(
    out: Annotated[Path, typer.Option(help="Where runs and measurements go.")] = Path(
        "runs/reproduce"
    ),
    page: Annotated[Path, typer.Option(help="Markdown page to write.")] = Path(
        "docs/reproduction.md"
    ),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Minutes instead of most of an hour; verdicts mean little."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Train and measure every figure and table of the paper in the tiny world. Resumes."""
    with _errors(debug):
        from effopd.cli.reproduce import reproduce as run

        run(out, page, quick=quick)


@app.command()
def analyze(
    base: Annotated[
        Path, typer.Argument(help="Model directory before training, or a run.", metavar="BASE")
    ],
    out: Annotated[Path, typer.Option(help="Directory of tables, figures and page.")],
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(help="Model directories, LoRA adapters, or a run.", metavar="CKPT..."),
    ] = None,
    final: Annotated[
        Path | None, typer.Option(help="What the series is compared with; its last by default.")
    ] = None,
    what: Annotated[
        str | None, typer.Option(help="norms,spectra,subspaces,trajectories,behavior or some.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Problems and teacher for behavior; the run's by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="PyTorch device that computes.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Tensors at a time; one per core, 4 at most.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure what training changed, place by place: tables, figures and a page. Resumes."""
    with _errors(debug):
        from effopd.cli.analyze import AnalysisRequest
        from effopd.cli.analyze import analyze as run

        run(
            AnalysisRequest(
                base=base,
                checkpoints=checkpoints or [],
                out=out,
                final=final,
                what=what,
                device=device,
                workers=workers,
                recipe=recipe,
            )
        )


@app.command()
def intervene(
    base: Annotated[Path, typer.Argument(help="Model directory before training.", metavar="BASE")],
    tuned: Annotated[
        Path, typer.Argument(help="Model directory, or LoRA adapter of BASE.", metavar="TUNED")
    ],
    kind: Annotated[
        str,
        typer.Option(help="scale, norm, embeddings, window, top_rank, bottom_rank or swap."),
    ],
    out: Annotated[Path, typer.Option(help="Where checkpoints and tables go.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Of the kind, for example scale=0.5,1,1.5.")
    ] = None,
    other: Annotated[
        Path | None, typer.Option(help="Second tuned model, whose norms or tensors are taken.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Evaluate in memory, as this recipe says.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Evaluations of each.")] = 4,
    problems: Annotated[
        int | None, typer.Option(help="Test problems; the recipe's number by default.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write checkpoints too when evaluating.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Scale, remove or exchange parts of an update; write checkpoints or evaluate them. Resumes."""
    with _errors(debug):
        from effopd.cli.intervene import Request, run_intervene

        run_intervene(
            Request(
                base=base,
                tuned=tuned,
                kind=kind,
                settings=settings or [],
                out=out,
                other=other,
                recipe=recipe,
                passes=passes,
                problems=problems,
                write=write,
            )
        )


@app.command()
def extrapolate(
    anchor: Annotated[
        Path, typer.Argument(help="Model directory of an earlier step.", metavar="ANCHOR")
    ],
    tip: Annotated[
        Path, typer.Argument(help="Model directory, or LoRA adapter of ANCHOR.", metavar="TIP")
    ],
    scale: Annotated[
        list[float], typer.Option(help="How far: 1 is TIP, 3 twice as far again; repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Model directory to write; of several, the parent.")],
    select: Annotated[
        str, typer.Option(help="What moves: attention_mlp, matrices, all or re:PATTERN.")
    ] = "attention_mlp",
    debug: Debug = False,
) -> None:
    """Write ANCHOR + scale * (TIP - ANCHOR): the search's step, on any trainer's checkpoints."""
    with _errors(debug):
        from effopd.cli.extrapolate import extrapolate as write_points

        write_points(anchor, tip, scale, out, select=select)


@app.command(name="theory")
def local_theory(
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Directory of the tables.")],
    rank: Annotated[int, typer.Option(help="Leading eigenpairs of the curvature.")] = 16,
    contexts: Annotated[int, typer.Option(help="Contexts of the base model's answers.")] = 2048,
    steps: Annotated[int, typer.Option(help="Steps of gradient descent to predict.")] = 32,
    debug: Debug = False,
) -> None:
    """Predict a distillation run from the local theory of its base model; compare."""
    with _errors(debug):
        from effopd.cli.theory import TheorySettings, theory

        theory(run, out, TheorySettings(rank=rank, contexts=contexts, steps=steps))


@app.command()
def doctor(
    recipe: Recipe,
    overrides: Overrides = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use nothing but this disk.")] = False,
    gpu: Annotated[
        str | None, typer.Option(help="Card to fit: a name such as 'H100 80GB', or bytes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    debug: Debug = False,
) -> None:
    """Look for what would go wrong in a run, and estimate its memory and time; train nothing."""
    with _errors(debug):
        from effopd.cli.doctor import doctor as look

        fine = look(recipe, overrides or [], offline=offline, gpu=gpu, as_json=as_json)
        raise typer.Exit(0 if fine else 1)


@data.command()
def preview(
    recipe: Recipe,
    overrides: Overrides = None,
    problems: Annotated[
        int, typer.Option("--problems", "-n", min=0, help="Training problems to show.")
    ] = 3,
    debug: Debug = False,
) -> None:
    """Print what student and teacher are shown, and how many problems were left out, and why."""
    with _errors(debug):
        from effopd.cli.data import preview as show

        show(recipe, overrides or [], problems)


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Expected errors become one message and status 2 (settings) or 1 (everything else)."""
    try:
        yield
    except (EffopdError, OSError) as error:
        if debug:
            raise
        print(f"error: {display_text(str(error))}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


if __name__ == "__main__":
    app()
