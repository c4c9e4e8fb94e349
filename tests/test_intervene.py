"""Sweeps of interventions: checkpoints, tables, resuming, and the evaluation that others reuse."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
import typer
from tests.fakes import TOKENIZER, WORLD, FakeEngine, bigram_table, tiny_model, tiny_policy, writer
from tests.reference import interventions_twin as twin
from tests.reference.core_twin import bits
from torch import Tensor
from typer.testing import CliRunner

from effopd.analysis.intervention_kinds import KINDS, Source, interventions
from effopd.analysis.interventions import WholeScaling
from effopd.analysis.sweeps import (
    STATISTICS,
    Case,
    Passes,
    evaluate_interventions,
    intervene,
    pooled,
)
from effopd.cli.main import app
from effopd.errors import ConfigError
from effopd.evaluation.evaluator import EvaluationResult, Evaluator
from effopd.evaluation.statistics import mean, ratio
from effopd.models.updates import PairUpdate, open_update
from effopd.models.weights import MemoryWeights, open_weights
from effopd.records import read_jsonl
from effopd.reports.table_files import read_table
from effopd.rollouts.engine import derive_seed
from effopd.search.validation import standard_error
from effopd.training.build import build_parts
from effopd.training.config import load_config

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "interventions.md").read_text("utf-8")
FIGURES = re.findall(r"`effopd intervene BASE (.+)`", (DOCS / "analysis.md").read_text("utf-8"))
Point = dict[str, Tensor]


def effopd(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["intervene", *map(str, arguments)])


def save(directory: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(directory)  # type: ignore[operator]
    TOKENIZER.save_pretrained(directory)
    return directory


def near(seed: int, distance: float) -> torch.nn.Module:
    """The base with every tensor a little away."""
    model, rng = tiny_model(0), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += distance * torch.randn(parameter.shape, generator=rng)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `tuned`, `final` and `teacher`, and `run.toml`, which names the last."""
    directory = tmp_path_factory.mktemp("intervene")
    save(directory / "base", tiny_model(0))
    save(directory / "tuned", near(1, 0.02))
    save(directory / "final", near(2, 0.05))
    save(directory / "teacher", tiny_model(3))
    sizes = ("layers", "hidden", "operations", "train_problems", "test_problems")
    settings = {
        "student": {"path": str(directory / "nowhere")},  # the base takes its place
        "teacher": {"path": str(directory / "teacher")},
        "task": {"type": "tiny_world"} | {name: getattr(WORLD, name) for name in sizes},
        "sampling": {"max_new_tokens": 4},
        "evaluation": {"problems": 5},
    }
    (directory / "run.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    return directory


def read(directory: Path) -> Point:
    weights = open_weights(directory)
    return {name: weights.read(name) for name in weights.shapes}


def rows_of(out: Path) -> list[dict[str, Any]]:
    return read_table(out / "tables" / "interventions.csv")


# Checkpoints --------------------------------------------------------------------------------------


def test_a_checkpoint_for_every_combination(models: Path, tmp_path: Path) -> None:
    base, tuned, out = models / "base", models / "tuned", tmp_path / "out"
    settings = ["part=embeddings,head", "into=tuned,base"]
    result = effopd(base, tuned, *settings, "--kind", "embeddings", "--out", out)
    assert result.exit_code == 0, result.output
    start, end = read(base), read(tuned)
    for part, name in (("embeddings", "model.embed_tokens.weight"), ("head", "lm_head.weight")):
        for into in ("tuned", "base"):
            found = read(out / "checkpoints" / f"tuned-embeddings-part-{part}-into-{into}")
            takes_tuned = {n for n in start if (n == name) == (into == "base")}
            expected = twin.mixed(start, end, takes_tuned)
            assert all(found[n].double().equal(expected[n]) for n in start)
    assert len(list((out / "checkpoints").iterdir())) == 4
    assert result.stdout.count("24 tensors changed, 1 at the base, 0 never moved\n") == 2
    assert result.stdout.count("1 tensors changed, 24 at the base, 0 never moved\n") == 2


KIND_CASES: list[tuple[str, list[str], bool, int]] = [
    ("scale", ["scale=0.5,1"], False, 2),
    ("scale", ["norm=0.25"], False, 1),
    ("scale", [], True, 1),
    ("norm", ["beta=0.5,1", "per=module,whole"], True, 4),
    ("norm", [], True, 1),
    ("embeddings", [], False, 1),
    ("window", ["half_width=0"], False, 2),
    ("window", ["half_width=0", "block=mlp,attention", "only_whole=true"], False, 4),
    ("window", ["centre=1", "half_width=0,1"], False, 2),
    ("top_rank", ["share=0.1,0.5"], False, 2),
    ("top_rank", ["share=0.1", "norm=0.5", "others=tuned"], False, 1),
    ("top_rank", ["share=0.1"], True, 1),
    ("bottom_rank", ["share=0.5", "others=base,tuned"], False, 2),
    ("swap", ["blocks=mlp,attention+head"], True, 2),
]


@pytest.mark.parametrize(("kind", "settings", "other", "count"), KIND_CASES)
def test_every_kind(
    models: Path, tmp_path: Path, kind: str, settings: list[str], other: bool, count: int
) -> None:
    final = models / "final" if other else None
    rows = intervene(models / "base", models / "tuned", kind, settings, out=tmp_path, other=final)
    assert len({row["directory"] for row in rows}) == len(rows) == count
    base = read(models / "base")
    points = [read(Path(row["directory"])) for row in rows]
    assert all(not all(point[n].equal(base[n]) for n in base) for point in points)
    if kind == "scale" and other:
        expected = twin.whole_norm(base, read(models / "final"))
        assert rows[0]["update_norm"] == pytest.approx(expected, rel=1e-5)
    if kind == "top_rank" and other:
        asked = twin.norms(base, read(models / "final"))
        found = twin.norms(base, points[0])
        for name in (n for n in base if "proj" in n):
            assert found[name] == pytest.approx(asked[name], rel=1e-4)


def test_every_kind_is_tried_and_described() -> None:
    assert {kind for kind, *_ in KIND_CASES} == set(KINDS)
    for kind, found in KINDS.items():
        (row,) = re.findall(rf"^\| `{kind}` \| (.*)$", PAGE, re.MULTILINE)
        assert [name for name in found.settings if f"`{name}" not in row] == []
        assert f"**{kind}.** " in PAGE


# Evaluation ---------------------------------------------------------------------------------------


def test_rows_are_those_of_the_evaluation_of_a_written_checkpoint(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = models / "run.toml"
    ends, values = (models / "base", models / "tuned"), {"scale": [0, 2]}
    rows = intervene(*ends, "scale", values, recipe=recipe, passes=1, out=tmp_path, write=True)
    assert [{n: c if c != "" else None for n, c in r.items()} for r in rows] == rows_of(tmp_path)
    assert intervene(*ends, "scale", values, recipe=recipe, passes=1) == rows
    assert capsys.readouterr().out == ""
    config = load_config(recipe)
    for row in rows:
        directory = tmp_path / "checkpoints" / f"tuned-scale-{row['value']:g}"
        assert config.student is not None
        student = replace(config.student, path=str(directory))
        expected = build_parts(config.model_copy(update={"student": student}), print)
        found = expected.evaluate_student().row()
        for name in ("accuracy", "accuracy_se", "reverse_kl", "mean_length", "truncated_share"):
            assert row[name] == pytest.approx(found[name], rel=1e-6), name
        assert (row["problems"], row["passes"], row["failure"]) == (5, 1, None)
        norm = twin.whole_norm(read(models / "base"), read(directory))
        assert row["update_norm"] == pytest.approx(norm, rel=1e-6)
    assert [(row["value"], row["at_base"]) for row in rows] == [(0, 25), (2, 0)]


@pytest.fixture
def sweep(models: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a sweep into one directory."""

    def run(kind: str, setting: str, *, tuned: Path = models / "tuned", **options: Any) -> Any:
        options = {"passes": 1, "recipe": models / "run.toml", "out": tmp_path} | options
        return intervene(models / "base", tuned, kind, [setting], **options)

    return run


def test_finished_rows_are_not_evaluated_again(sweep: Callable[..., Any], tmp_path: Path) -> None:
    kept = sweep("scale", "scale=0.5,1")
    journal = (tmp_path / "interventions.jsonl").read_bytes()
    assert [row["value"] for row in sweep("scale", "scale=1,0.5")] == [1, 0.5]
    assert (tmp_path / "interventions.jsonl").read_bytes() == journal
    assert sweep("scale", "scale=0.5,1,1.5")[:2] == kept
    assert (tmp_path / "interventions.jsonl").read_bytes().startswith(journal)
    sweep("window", "half_width=0")
    kinds = [(row["kind"], row["value"]) for row in rows_of(tmp_path)]
    assert kinds == [("scale", 0.5), ("scale", 1), ("scale", 1.5), ("window", 1), ("window", 2)]
    assert len(read_jsonl(tmp_path / "interventions.jsonl")) == 5


def test_a_row_cut_off_by_a_kill_is_evaluated_again_to_the_same(
    sweep: Callable[..., Any], tmp_path: Path
) -> None:
    rows = sweep("scale", "scale=0.5,1")
    journal = tmp_path / "interventions.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    (tmp_path / "tables" / "interventions.csv").unlink()
    assert sweep("scale", "scale=0.5,1") == rows
    assert journal.read_bytes() == whole
    assert [row["value"] for row in rows_of(tmp_path)] == [0.5, 1]


def test_changed_weights_are_evaluated_again(
    sweep: Callable[..., Any], tmp_path: Path, models: Path
) -> None:
    tuned = tmp_path / "copy"
    shutil.copytree(models / "tuned", tuned)
    (before,) = sweep("scale", "scale=1", tuned=tuned)
    save(tuned, near(5, 0.1))
    (after,) = sweep("scale", "scale=1", tuned=tuned)
    assert after["update_norm"] > 2 * before["update_norm"]
    assert len(rows_of(tmp_path)) == 1
    assert len(read_jsonl(tmp_path / "interventions.jsonl")) == 2


def test_another_evaluation_needs_another_directory(sweep: Callable[..., Any]) -> None:
    sweep("scale", "scale=1")
    with pytest.raises(ConfigError, match="holds the sweep of other settings:") as refused:
        sweep("scale", "scale=1", passes=2, problems=3)
    assert "evaluation.problems: 5 -> 3" in str(refused.value)
    assert "passes: 1 -> 2" in str(refused.value)


def test_the_command_prints_every_row_and_a_table(models: Path, tmp_path: Path) -> None:
    words = [models / "base", models / "tuned", "scale=0.5,1", "--kind", "scale", "--passes", "2"]
    result = effopd(*words, "--recipe", models / "run.toml", "--out", tmp_path)
    lines = result.stdout.splitlines()
    number = r"\d+\.\d{4} \+- \d+\.\d{4}"
    line = rf"scale 0\.5  norm [\d.]+  accuracy {number}  KL to teacher {number}  never moved 0"
    assert re.fullmatch(rf"interventions: 1/2  {line}  0:\d\d elapsed, about .* left", lines[0])
    assert re.split(r"  +", lines[3]) == [
        "intervention", "norm", "accuracy", "KL to teacher", "never moved",
    ]  # fmt: skip
    assert [each.split("  ")[0].strip() for each in lines[4:6]] == ["scale 0.5", "scale 1"]
    assert lines[-1] == f"table: {tmp_path / 'tables' / 'interventions.csv'}"


# The function that others reuse -------------------------------------------------------------------


def live_update(seed: int = 1, distance: float = 0.02) -> PairUpdate:
    base, tuned = tiny_model(0).state_dict(), near(seed, distance).state_dict()
    return PairUpdate(MemoryWeights(base), MemoryWeights(tuned))


def passes(policy: Any, engine: Any, count: int = 2, problems: int = 6) -> Passes:
    evaluator = Evaluator(problems=WORLD.load().test[:problems], verifier=WORLD.verifier, seed=7)
    return Passes(
        policy=policy, writer=writer(engine), evaluator=evaluator, teachers=None, count=count
    )


def test_the_first_pass_is_trainings_and_the_others_draw_anew() -> None:
    policy, engine = tiny_policy(0), FakeEngine(bigram_table())
    evaluated = passes(policy, engine, count=3)
    case = Case(intervention=WholeScaling(scale=0.5), update=live_update())
    (row,) = evaluate_interventions([case], evaluated)
    seeds = [7, derive_seed(7, "pass", 1), derive_seed(7, "pass", 2)]
    expected = [derive_seed(s, "evaluate", i) for s in seeds for i in range(6)]
    assert [request.seed for request in engine.requests] == expected
    assert engine.syncs == 2  # with the changed weights, and once they are back
    twins = [replace(evaluated.evaluator, seed=s).evaluate(evaluated.writer) for s in seeds]
    assert row["accuracy"] == pytest.approx(mean([mean(each.rewards) for each in twins]))
    assert row["passes"] == 3


def test_a_live_model_is_put_back() -> None:
    policy = tiny_policy(0)
    before = {n: bits(t) for n, t in policy.model.state_dict().items()}
    update = live_update()
    cases = [
        Case(intervention=WholeScaling(scale=s), update=update, checkpoint="opd") for s in (0, 1)
    ]
    rows = list(evaluate_interventions(cases, passes(policy, FakeEngine(bigram_table()))))
    assert [row["value"] for row in rows] == [0, 1]
    assert {row["checkpoint"] for row in rows} == {"opd"}
    assert {n: bits(t) for n, t in policy.model.state_dict().items()} == before


def test_a_model_that_breaks_is_a_row_with_its_reason() -> None:
    engine = FakeEngine([[float("nan")] * len(TOKENIZER) for _ in range(len(TOKENIZER))])
    case = Case(intervention=WholeScaling(scale=1.0), update=live_update())
    (row,) = evaluate_interventions([case], passes(tiny_policy(0), engine))
    assert row["failure"] == "the table holds NaN"
    assert [row[name] for name in STATISTICS] == [None] * len(STATISTICS)
    assert row["update_norm"] > 0


def evaluation(rewards: tuple[float, ...], kl: tuple[tuple[float, ...], ...]) -> EvaluationResult:
    problems = WORLD.load().test[: len(rewards)]
    engine = FakeEngine(bigram_table())
    rollouts = writer(engine).answer(problems, range(len(problems)))
    return EvaluationResult(rollouts=tuple(rollouts), rewards=rewards, kl_nats=kl)


def test_problems_are_the_sample_of_a_standard_error() -> None:
    first = evaluation((1.0, 0.0, 0.0), ((1.0,), (2.0, 2.0), (3.0,)))
    second = evaluation((1.0, 1.0, 0.0), ((1.0, 1.0), (5.0,), (3.0, 3.0, 3.0)))
    row = pooled([first, second])
    assert row["accuracy"] == pytest.approx(0.5)
    assert row["accuracy_se"] == standard_error([1.0, 0.5, 0.0])
    assert row["reverse_kl"] == pytest.approx((3 + 9 + 12) / 10)
    residuals = [(3 - 2.4 * 3) / (10 / 3), (9 - 2.4 * 3) / (10 / 3), (12 - 2.4 * 4) / (10 / 3)]
    assert row["reverse_kl_se"] == pytest.approx(standard_error(residuals))
    assert (row["problems"], row["passes"]) == (3, 2)
    copies = pooled([first] * 4)  # repeating a pass adds no information
    assert copies["accuracy_se"] == pooled([first])["accuracy_se"]


def test_a_ratio_of_equal_counts_is_a_mean() -> None:
    found, error = ratio([2.0, 4.0, 9.0], [2, 2, 2])
    assert found == pytest.approx(2.5)
    assert error == pytest.approx(standard_error([1.0, 2.0, 4.5]))
    assert ratio([], []) == (None, None)
    assert ratio([6.0], [3]) == (2.0, None)


def test_passes_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match="passes must be at least 1, got 0"):
        passes(tiny_policy(0), FakeEngine(bigram_table()), count=0)


# Refusals and documentation -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "other", "message"),
    [
        ("scall", [], False, "--kind must be one of scale, norm, embeddings, window, top_rank"),
        ("scale", [], False, "--kind scale takes one of scale=..., norm=... and --other"),
        ("scale", ["scale=1", "norm=1"], False, "--kind scale takes one of scale=..., norm=..."),
        ("scale", ["scale=1"], True, "--kind scale takes one of scale=..., norm=... and --other"),
        ("scale", ["scale=x"], False, "scale must be a valid number, got 'x'"),
        (
            "scale",
            ["scale"],
            False,
            "--kind scale has the settings scale=..., norm=..., got 'scale'",
        ),
        ("scale", ["beta=1"], False, "--kind scale has the settings scale=..., norm=..., got"),
        ("norm", [], False, "--kind norm takes norms or tensors of a second model: give --other"),
        ("norm", ["per=layer"], True, "per must be 'module' or 'whole', got 'layer'"),
        ("window", [], True, "--kind window takes nothing from a second model: leave out --other"),
        ("window", ["centre=1.5"], False, "centre must be a valid integer, got 1.5"),
        ("window", ["only_whole=yes"], False, "only_whole must be a valid boolean, got 'yes'"),
        ("window", ["centre=1", "only_whole=true"], False, "only_whole chooses among all centres"),
        ("window", ["only_whole=true"], False, "no whole window of 17 layers fits into 2 layers"),
        ("top_rank", [], False, "give the share of the rank that is kept: share=0.01 is 1%"),
        ("top_rank", ["share=0.1", "norm=1"], True, "takes norm=... or the norms of --other, not"),
        ("bottom_rank", ["share=2"], False, "shares of the rank are fractions in (0, 1], got 2.0"),
        ("swap", ["blocks=mpl"], True, "blocks must be one of attention, mlp, embedding"),
    ],
)
def test_wrong_settings_are_refused(
    models: Path, tmp_path: Path, kind: str, settings: list[str], other: bool, message: str
) -> None:
    final = models / "final" if other else None
    ends, out = (models / "base", models / "tuned"), tmp_path / "out"
    with pytest.raises(ConfigError, match=re.escape(message)):
        intervene(*ends, kind, settings, out=out, other=final)
    assert not out.exists()


def test_a_sweep_that_cannot_be_made_is_refused(models: Path, tmp_path: Path) -> None:
    arguments = [models / "base", models / "tuned", "scale=1", "--kind", "scale"]
    none = effopd(*arguments, "--recipe", models / "run.toml", "--problems", "0", "--out", tmp_path)
    assert (none.exit_code, "give --problems" in none.stderr) == (2, True)
    recipe = tmp_path / "self.toml"
    recipe.write_text('[self_teacher]\ndecay = 0.9\n[student]\npath = "x"\n')
    with pytest.raises(ConfigError, match="teacher is an average of the student"):
        intervene(models / "base", models / "tuned", "scale", {"scale": 1}, recipe=recipe)
    with pytest.raises(ConfigError, match="checkpoints need a directory"):
        intervene(models / "base", models / "tuned", "scale", {"scale": 1})


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line.split() for line in lines if line.startswith("effopd")]
    assert len(commands) == 2
    for command in commands:
        result = CliRunner().invoke(app, [*command[1:-1], str(tmp_path / command[-1])])
        assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "scaled" / "checkpoints").iterdir())) == 4
    assert len(rows_of(tmp_path / "scaled")) == 4


@pytest.mark.parametrize("command", FIGURES, ids=lambda command: command.split("--kind ")[1])
def test_the_command_of_every_figure_makes_interventions(models: Path, command: str) -> None:
    parser = typer.main.get_group(app).commands["intervene"]
    asked = parser.make_context("intervene", ["BASE", *command.split(), "--out", "OUT"]).params
    base, tuned, final = (models / name for name in ("base", "tuned", "final"))
    other = open_update(base, final) if asked["other"] else None
    source = Source(update=open_update(base, tuned), other=other)
    found = interventions(asked["kind"], asked["settings"], source)
    wanted = math.prod(text.count(",") + 1 for text in asked["settings"])
    assert len(found) == (2 if asked["kind"] == "window" else wanted)  # a window for each layer
    assert len({(each.value, each.setting) for each in found}) == len(found)


def test_the_examples_of_the_page_run(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in {"base": "base", "step-4": "tuned", "step-40": "final"}.items():
        shutil.copytree(models / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shutil.copy(models / "run.toml", tmp_path)
    sweep, example = blocks("python")
    known: dict[str, Any] = {"model": tiny_model(0)}
    exec(compile(sweep, "docs/interventions.md", "exec"), known)
    assert list(known["accuracies"]) == [0.5, 1]
    exec(compile(example, "docs/interventions.md", "exec"), known)
    base, early, final = (read(tmp_path / name) for name in ("base", "step-4", "step-40"))
    scales = {
        n: 1 + 0.8 * (twin.norms(base, final)[n] / norm - 1)
        for n, norm in twin.norms(base, early).items()
    }
    expected = twin.scaled_each(base, early, scales)
    for name, tensor in read(tmp_path / "rescaled").items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_every_column_is_described(sweep: Callable[..., Any], tmp_path: Path) -> None:
    sweep("scale", "scale=1")
    (row,) = rows_of(tmp_path)
    described = set(re.findall(r"`(\w+)`", PAGE.split("## Evaluation")[1].split("## In Python")[0]))
    assert set(row) <= described
    assert json.loads((tmp_path / "interventions.jsonl").read_text())["schema"] == 1
