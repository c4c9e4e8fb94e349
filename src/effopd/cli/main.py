"""`effopd`: the commands. Imports wait until a command runs, so that `--help` is instant."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from effopd.cli import analysis_commands
from effopd.cli.options import (
    STOPPED,
    Against,
    BenchmarkFiles,
    Benchmarks,
    CheckpointStep,
    Debug,
    EvaluatedRun,
    EvaluationOut,
    EvaluationOverrides,
    EvaluationTarget,
    Every,
    Limit,
    Overrides,
    Recipe,
    Runs,
    Samples,
    SelfCheck,
    TestProblems,
    errors,
)

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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where runs and report go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the runs.")] = 0,
    debug: Debug = False,
) -> None:
    """Train a tiny student with and without the search; write a report. Minutes, no download."""
    with errors(debug):
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
    with errors(debug):
        from effopd.cli.run import run_recipe

        directory = out or Path("runs") / recipe.stem
        finished = run_recipe(recipe, overrides or [], directory, print_config=print_config)
        raise typer.Exit(0 if finished else STOPPED)


@app.command(name="eval")
def evaluate(
    target: EvaluationTarget = None,
    overrides: EvaluationOverrides = None,
    bench: Benchmarks = None,
    samples: Samples = 1,
    data_files: BenchmarkFiles = None,
    out: EvaluationOut = None,
    run: EvaluatedRun = None,
    every: Every = 1,
    limit: Limit = None,
    against: Against = None,
    self_check: SelfCheck = False,
    step: CheckpointStep = None,
    problems: TestProblems = None,
    debug: Debug = False,
) -> None:
    """Evaluate a model on benchmarks, or a checkpoint of a run on its test problems. Resumes."""
    with errors(debug):
        from effopd.cli.evaluate import evaluate_benchmarks, evaluate_checkpoint

        if bench is None:
            if target is None:
                raise typer.BadParameter("give a run, or a model and --bench")
            evaluate_checkpoint(Path(target), step, problems, overrides or [])
            return
        finished = evaluate_benchmarks(
            target,
            overrides or [],
            bench=bench,
            samples=samples,
            files=data_files or [],
            out=out,
            run=run,
            every=every,
            limit=limit,
            against=against,
            self_check=self_check,
        )
        raise typer.Exit(0 if finished else STOPPED)


@app.command()
def report(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="Page to write; report.html in the first run by default.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw one or several runs into a single self-contained page, with PNG copies beside it."""
    with errors(debug):
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
    with errors(debug):
        from effopd.cli.compare import run_compare

        ending = run_compare(plan, out, workers=workers, quick=quick, list_runs=list_runs)
        raise typer.Exit({"finished": 0, "failed": 1, "stopped": STOPPED}[ending])


app.command()(analysis_commands.analyze)
app.command()(analysis_commands.intervene)
app.command()(analysis_commands.extrapolate)
app.command(name="theory")(analysis_commands.local_theory)


@app.command()
def doctor(
    target: Annotated[
        Path, typer.Argument(help="Recipe, plan, or with --gpus a model.", metavar="RUN.toml")
    ],
    overrides: Overrides = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use nothing but this disk.")] = False,
    gpu: Annotated[
        str | None, typer.Option(help="Card to fit: a name such as 'H100 80GB', bytes, or auto.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Estimate a run on so many cards, sharded by FSDP2.")
    ] = None,
    engine_gpus: Annotated[
        int, typer.Option(help="With --gpus: cards of an inference engine; 0 takes the fewest.")
    ] = 0,
    expert_ranks: Annotated[
        int, typer.Option(help="With --gpus: ranks that experts are distributed over.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Look for what would go wrong in a run, and estimate its memory and time; train nothing."""
    with errors(debug):
        from effopd.doctor import Cluster, check_file, named_card

        card, cluster = named_card(gpu or ("auto" if gpus else None)), None
        if gpus is not None and card is not None:
            cluster = Cluster(
                gpu=card, gpus=gpus, engine_gpus=engine_gpus, expert_ranks=expert_ranks
            )
        found = check_file(target, overrides or [], offline=offline, gpu=card, cluster=cluster)
        print(json.dumps(found.as_dict(), indent=2) if as_json else found.text())
        raise typer.Exit(0 if found.passes else 1)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True})
def plan(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Renamed: effopd doctor MODEL --gpus N."""
    print("error: effopd plan MODEL is effopd doctor MODEL --gpus N now", file=sys.stderr)
    raise typer.Exit(2)


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
    with errors(debug):
        from effopd.doctor import preview as look
        from effopd.training.config import load_config

        found = look(load_config(recipe, overrides or []), problems)
        print(found.text(shutil.get_terminal_size((100, 24)).columns))


if __name__ == "__main__":
    app()
