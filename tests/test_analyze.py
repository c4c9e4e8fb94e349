"""`effopd.analyze`: tables against whole decompositions, resuming, and what is refused."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.checkpoints import family_model, save_adapter, save_family
from tests.support.tiny import tiny_config, train_tiny, write_models
from torch import Tensor
from typer.testing import CliRunner

import effopd
from effopd.analysis.series import find_inputs
from effopd.analysis.spectra import noise_metrics
from effopd.analysis.study import parse_what
from effopd.cli.main import app
from effopd.errors import (
    ConfigError,
    NonFiniteError,
    ParameterMismatchError,
    RecordError,
    RunLockedError,
)
from effopd.models.layout import ModuleTensor, matrices, module_tensors
from effopd.models.weights import open_weights
from effopd.progress import Display, Progress
from effopd.records import read_jsonl
from effopd.reports.analysis import Analysis
from effopd.reports.table_files import Cell, read_table
from effopd.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_pictures")
STEPS = (50, 100, 200, 400, 1000)
STILL = "v_proj"
PAGE = (Path(__file__).parents[1] / "docs" / "analysis.md").read_text("utf-8")
Table = list[dict[str, Cell]]


def write_series(directory: Path, steps: Iterable[int] = STEPS) -> None:
    """A sharded base, and checkpoints that drift and tremble; value projections never move."""
    save_family(directory / "base", shard_size="8KB")
    rng = torch.Generator().manual_seed(0)
    model = family_model("qwen3")
    drift = {name: torch.randn(p.shape, generator=rng) for name, p in model.named_parameters()}
    for step in steps:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if STILL not in name:
                    tremor = torch.randn(parameter.shape, generator=rng)
                    parameter.add_(1e-3 * drift[name] + 5e-4 * tremor)
        model.save_pretrained(directory / f"checkpoint-{step}", max_shard_size="8KB")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("series")
    write_series(directory)
    return directory


def analyzed(series: Path, what: str | None = None, **options: Any) -> Analysis:
    """All checkpoints, in the order in which a shell lists them."""
    return effopd.analyze(series / "base", sorted(series.glob("checkpoint-*")), what, **options)


@pytest.fixture(scope="module")
def analysis(series: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyzed(series, out=tmp_path_factory.mktemp("analysis") / "out", workers=2)


def label(step: int) -> str:
    return f"checkpoint-{step}"


def stored(series: Path, name: str, tensor: str) -> Tensor:
    return open_weights(series / name).read(tensor).double()


def update(series: Path, step: int, tensor: str) -> Tensor:
    base, tuned = stored(series, "base", tensor), stored(series, label(step), tensor)
    return (tuned.float() - base.float()).double()


def series_modules(series: Path) -> list[ModuleTensor]:
    return module_tensors(open_weights(series / "base").shapes)


def moving(series: Path) -> list[ModuleTensor]:
    return [module for module in matrices(series_modules(series)) if STILL not in module.name]


def of(rows: Table, **equal: Cell) -> Table:
    return [row for row in rows if all(row[name] == cell for name, cell in equal.items())]


def one(rows: Table, **equal: Cell) -> dict[str, Any]:
    (row,) = of(rows, **equal)
    return row


# Tables -------------------------------------------------------------------------------------------


def test_table_1_is_the_mean_over_the_matrices_that_moved(series: Path, analysis: Analysis) -> None:
    spectra, means = analysis.tables["spectra"], analysis.tables["table1"]
    assert [row["checkpoint"] for row in means] == [label(step) for step in STEPS]
    for step, mean in zip(STEPS, means, strict=True):
        values = [torch.linalg.svdvals(update(series, step, p.name)) for p in moving(series)]
        shares = [s[0] / s.norm() for s in values]
        ranks = [torch.special.entr(s / s.sum()).sum().exp() for s in values]
        assert mean["matrices"] == len(values)
        assert mean["never_moved"] == 2  # one in each layer
        assert mean["spectral_norm"] == pytest.approx(torch.stack([s[0] for s in values]).mean())
        assert mean["spectral_share"] == pytest.approx(torch.stack(shares).mean().item(), rel=1e-9)
        assert mean["effective_rank"] == pytest.approx(torch.stack(ranks).mean().item(), rel=1e-9)
        own: list[dict[str, Any]] = [r for r in of(spectra, checkpoint=label(step)) if r["rank"]]
        for name in ("top_5_ratio", "noise_effective_rank"):
            expected = sum(row[name] for row in own) / len(own)
            assert mean[name] == pytest.approx(expected, rel=1e-12)
    row = own[0]
    m, n = map(int, row["shape"].split(" x "))
    noise = noise_metrics(m, n, row["frobenius_norm"], top=(0.01, 0.05))
    assert row["noise_spectral_norm"] == pytest.approx(noise.spectral_norm, rel=1e-12)
    assert row["noise_top_5_ratio"] == pytest.approx(noise.top_ratios[0.05], rel=1e-12)


def test_a_final_model_may_be_outside_the_series(series: Path, analysis: Analysis) -> None:
    base, early, last = (series / name for name in ("base", label(50), label(1000)))
    rows = effopd.analyze(base, early, "subspaces", final=last).tables["subspaces"]
    for module in moving(series):
        row = one(rows, place=module.label)
        same = one(analysis.tables["subspaces"], checkpoint=label(50), place=module.label)
        expected = pytest.approx(same["final_subspace_cosine"], rel=1e-6)
        assert row["final_subspace_cosine"] == expected
        assert row["final_cosine_1"] < 0.9999


def test_what_never_moved_is_listed_and_nothing_is_nan(series: Path, analysis: Analysis) -> None:
    tables = analysis.tables
    still = [module.label for module in series_modules(series) if STILL in module.name]
    assert [row["place"] for row in tables["never_moved"]] == still
    for name in still:
        row = one(tables["spectra"], checkpoint=label(50), place=name)
        assert (row["rank"], row["frobenius_norm"], row["spectral_share"]) == (0, 0.0, None)
        assert row["noise_spectral_norm"] is None
        assert one(tables["subspaces"], checkpoint=label(50), place=name)["directions"] == 0
        assert one(tables["trajectories"], place=name)["explained_variance_ratio"] is None
    assert analysis.directory is not None
    for path in (analysis.directory / "tables").glob("*.csv"):
        assert "nan" not in path.read_text().lower()


def test_parquet_holds_the_same(analysis: Analysis) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert analysis.directory is not None
    for name in ("norms", "table1", "trajectory_points"):
        path = analysis.directory / "tables" / f"{name}.parquet"
        assert parquet.read_table(path).to_pylist() == analysis.tables[name]


def test_nothing_is_kept_without_a_directory_and_workers_change_nothing(
    series: Path, analysis: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    for workers in (1, 3):
        found = analyzed(series, "norms,spectra", workers=workers)
        assert found.directory is None
        assert set(found.tables) == {"norms", "norm_sums", "never_moved", "spectra", "table1"}
        assert all(rows == analysis.tables[name] for name, rows in found.tables.items())
    assert capsys.readouterr().out == ""
    assert found.figure("norms") == analysis.figure("norms")
    frame = found.to_pandas("spectra")
    assert list(frame["place"]) == [row["place"] for row in found.tables["spectra"]]
    with pytest.raises(RecordError, match="no table 'spectre'; there are never_moved, norm_sums"):
        found.to_pandas("spectre")
    with pytest.raises(RecordError, match="no figure 'subspaces'; there are norms, "):
        found.figure("subspaces")


def test_the_snippets_of_the_page_run(
    series: Path, analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert analysis.directory is not None
    (tmp_path / "analysis").symlink_to(analysis.directory)
    shutil.copytree(series / "base", tmp_path / "base")
    for step in STEPS[-2:]:
        shutil.copytree(series / label(step), tmp_path / f"step-{step}")
    monkeypatch.chdir(tmp_path)
    notebook, reading = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(notebook.splitlines()) == 4  # three, and the empty one below the import
    known: dict[str, Any] = {}
    exec(notebook, known)
    spectra = known["found"].tables["spectra"]
    assert {row["checkpoint"] for row in spectra} == {"step-400", "step-1000"}
    exec(reading, {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    last = of(analysis.tables["spectra"], checkpoint=label(1000))
    ranks = sorted(float(row["effective_rank"] or 0) for row in last if row["rank"])
    assert [float(rank) for _, rank, _ in printed] == ranks[:3]


# Going on -----------------------------------------------------------------------------------------


class Killed(Display):
    """Ends the process, as far as it can be told, after so many units."""

    def __init__(self, after: int) -> None:
        self._after = after

    @contextmanager
    def progress(self, name: str, total: int, **options: Any) -> Iterator[Progress]:
        def say(text: str) -> None:
            if progress.done == self._after:
                raise KeyboardInterrupt

        progress = Progress(name, total, done=options["done"], every_s=0.0, say=say)
        yield progress


class Telling(Display):
    """Keeps what is said."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def say(self, text: str) -> None:
        self._told.append(text)


@pytest.mark.parametrize("what", ["spectra", "subspaces"])
def test_a_killed_analysis_goes_on_without_measuring_again(
    series: Path, analysis: Analysis, tmp_path: Path, what: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        analyzed(series, what, out=tmp_path, workers=1, display=Killed(after=5))
    path = tmp_path / "rows" / f"{what}.jsonl"
    assert len(read_jsonl(path)) == 5
    path.write_bytes(path.read_bytes()[:-20])  # the last line was being written
    finished = read_jsonl(path)
    found = analyzed(series, what, out=tmp_path, workers=1)
    wanted = len(matrices(series_modules(series))) * (len(STEPS) if what == "spectra" else 1)
    rows = read_jsonl(path)
    assert rows[:4] == finished
    assert len(rows) == len({(row["place"], row["checkpoint"]) for row in rows}) == wanted
    assert all(rows == analysis.tables[name] for name, rows in found.tables.items())


def test_rows_of_an_older_format_are_measured_again(
    series: Path, analysis: Analysis, tmp_path: Path
) -> None:
    analyzed(series, "trajectories", out=tmp_path)
    path = tmp_path / "rows" / "trajectories.jsonl"
    rows = read_jsonl(path)
    old = [{**row.pop("found"), **row} for row in rows[:2]] + rows[2:]
    path.write_text("".join(json.dumps(row) + "\n" for row in old), encoding="utf-8")
    told: list[str] = []
    found = analyzed(series, "trajectories", out=tmp_path, display=Telling(told))
    assert "trajectories: 2 rows of an older format are measured again" in told
    assert all(rows == analysis.tables[name] for name, rows in found.tables.items())
    assert len(read_jsonl(path)) == len(rows) + 2


def test_more_can_be_asked_for_and_only_that_is_measured(series: Path, tmp_path: Path) -> None:
    analyzed(series, "spectra", out=tmp_path)
    before = (tmp_path / "rows" / "spectra.jsonl").read_bytes()
    found = analyzed(series, "norms,spectra", out=tmp_path)
    assert (tmp_path / "rows" / "spectra.jsonl").read_bytes() == before
    assert found.info["what"] == ["spectra", "norms"]
    assert found.tables["norm_sums"]
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "figures" / "norms.png").is_file()


def test_other_or_changed_inputs_are_refused(series: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "series", tmp_path / "out"
    shutil.copytree(series, copy)
    analyzed(copy, "spectra", out=out)
    before = (out / "analysis.json").read_bytes()
    with pytest.raises(ConfigError, match=r"its final checkpoint is .*-1000, now .*-50"):
        analyzed(copy, "spectra", out=out, final=copy / label(50))
    with pytest.raises(ConfigError, match=r"its checkpoints are .*, now checkpoint-50\n"):
        effopd.analyze(copy / "base", copy / label(50), out=out)
    (copy / label(200) / "config.json").write_text((copy / label(200) / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"(?s)checkpoint-200 in .* is not what it was.*--out"):
        analyzed(copy, "spectra", out=out)
    (copy / "base" / "config.json").write_text((copy / "base" / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"its base is .* as it was"):
        analyzed(copy, "spectra", out=out)
    assert (out / "analysis.json").read_bytes() == before


def test_a_directory_of_something_else_or_in_use_is_refused(series: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds something else"):
        analyzed(series, "spectra", out=tmp_path)
    with (
        Workspace(tmp_path / "out", "analysis"),
        pytest.raises(RunLockedError, match="wait for the analysis"),
    ):
        analyzed(series, "spectra", out=tmp_path / "out")


# Adapters and runs --------------------------------------------------------------------------------


def test_an_adapter_has_the_rank_of_its_factors(series: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    rows, columns = open_weights(series / "base").shapes[f"{name}.weight"]
    rng = torch.Generator().manual_seed(1)
    A, B = torch.randn(2, columns, generator=rng), torch.randn(rows, 2, generator=rng)
    adapter = save_adapter(
        tmp_path / "adapter-10",
        {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B},
    )
    tables = effopd.analyze(series / "base", adapter, ["norms", "spectra"]).tables
    values = torch.linalg.svdvals(4.0 * B.double() @ A.double())  # alpha / r = 8 / 2
    row = one(tables["spectra"], place=f"{name}.weight")
    assert row["rank"] == 2
    assert row["spectral_norm"] == pytest.approx(values[0].item(), rel=1e-6)
    assert one(tables["table1"], matrices=1)["step"] is None
    assert len(tables["never_moved"]) == len(series_modules(series)) - 1


def test_a_run_brings_its_base_and_all_its_checkpoints(tmp_path: Path) -> None:
    models, run, out = write_models(tmp_path / "models"), tmp_path / "run", tmp_path / "out"
    train_tiny(tiny_config(models), run)
    result = CliRunner().invoke(app, ["analyze", str(run), "--out", str(out), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "spectral / Frobenius" in result.output  # Table 1
    assert f"page: {out / 'report.html'}" in result.output
    info = json.loads((out / "analysis.json").read_text())
    assert info["base"]["path"] == str(models / "student")
    assert [each["label"] for each in info["checkpoints"]] == ["step-00004", "step-00008"]
    assert info["what"] == ["norms", "spectra", "subspaces", "trajectories", "behavior"]
    accuracies = {
        r["step"]: r["accuracy"] for r in read_jsonl(run / "evals.jsonl") if r["model"] == "student"
    }
    divergences = read_table(out / "tables" / "divergences.csv")
    for step in (4, 8):
        row = one(divergences, label=f"step-0000{step}", text="own", to="teacher")
        assert row["accuracy"] == accuracies[step]
    written = {path.stem for path in (out / "tables").glob("*.csv")}
    assert written <= set(re.findall(r"`(\w+)`", PAGE))
    measured = (out / "rows" / "behavior.json").stat().st_mtime_ns
    effopd.analyze(run, what="behavior", out=out)
    assert (out / "rows" / "behavior.json").stat().st_mtime_ns == measured
    inputs = find_inputs(models / "student", [run], None, print)
    assert [each.step for each in inputs.checkpoints] == [4, 8]
    with pytest.raises(ConfigError, match="2 runs were given"):
        find_inputs(run, [run], None, print)


# Inputs and refusals ------------------------------------------------------------------------------


def directories(root: Path, *names: str) -> list[Path]:
    found = [root / name for name in names]
    for path in found:
        path.mkdir(parents=True, exist_ok=True)
    return found


@pytest.mark.parametrize(
    ("names", "labels", "steps"),
    [
        (["checkpoint-100", "checkpoint-1000", "checkpoint-20"],
         ["checkpoint-20", "checkpoint-100", "checkpoint-1000"], [20, 100, 1000]),
        (["global_step_8/actor", "global_step_4/actor"],
         ["global_step_4/actor", "global_step_8/actor"], [4, 8]),
        (["b", "a"], ["b", "a"], [None, None]),
        (["run/step-00002", "run/final"], ["step-00002", "final"], [2, None]),
        (["base", "later"], ["x/base", "x/later"], [None, None]),
        (["Qwen3-4B"], ["Qwen3-4B"], [None]),
    ],
)  # fmt: skip
def test_labels_steps_and_order(
    tmp_path: Path, names: list[str], labels: list[str], steps: list[int | None]
) -> None:
    root = tmp_path / "x"
    told: list[str] = []
    (start,) = directories(tmp_path, "start")
    found = find_inputs(start, directories(root, *names), None, told.append)
    assert [each.label for each in found.checkpoints] == labels
    assert [each.step for each in found.checkpoints] == steps
    assert found.final == found.checkpoints[-1]
    moved = [each.directory.relative_to(root).as_posix() for each in found.checkpoints] != names
    assert told == ["checkpoints are taken in the order of their steps"] * moved


def test_a_final_model_outside_the_series(tmp_path: Path) -> None:
    base, first, final = directories(tmp_path, "base", "step-1", "other/step-9")
    found = find_inputs(base, [first], final, print)
    assert (found.final.label, found.final.step) == ("final (step-9)", 9)
    assert find_inputs(base, [first, final], first, print).final.label == "step-1"


def test_a_repository_of_the_hub_is_named_as_it_was_given(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, repository = "0123456789" * 4, tmp_path / "models--some--model-step-50"
    shutil.copytree(series / label(50), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    other = find_inputs(series / "base", [series / label(100)], "some/model-step-50", print)
    assert (other.final.label, other.final.step) == ("final (model-step-50)", 50)
    found = find_inputs(series / "base", ["some/model-step-50"], None, print)
    assert (found.final.label, found.final.step) == ("model-step-50", 50)
    assert found.final.directory.name == commit
    with pytest.raises(ConfigError, match=r"some/model-step-50 was given twice"):
        find_inputs(series / "base", ["some/model-step-50"] * 2, None, print)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no checkpoint was given"),
        (["step-1", "step-1"], "was given twice"),
        (["a/step-4", "b/step-4"], r"a/step-4 and b/step-4 are both of step 4"),
    ],
)
def test_what_is_no_series_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    (base,) = directories(tmp_path, "base")
    with pytest.raises(ConfigError, match=message):
        find_inputs(base, directories(tmp_path, *names), None, print)


def test_what_is_measured() -> None:
    assert parse_what(None) == []
    assert parse_what("spectra, norms") == ["norms", "spectra"]
    assert parse_what(["spectra", "norms"]) == ["norms", "spectra"]
    with pytest.raises(ConfigError, match=r"what: 'spectre' is not .*did you mean spectra"):
        parse_what("norms,spectre")
    with pytest.raises(ConfigError, match="what is empty"):
        parse_what(",")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--what", "spectrum"], 2, "did you mean spectra?"),
        (["--what", "behavior"], 2, "give --recipe RUN.toml"),
        (["--what", "norms", "--recipe", "x.toml"], 2, "--recipe is for behavior"),
        (["--device", "tpu9"], 2, "device 'tpu9' cannot be used: "),
        (["--final", "nowhere"], 2, "no model directory at nowhere"),
    ],
)
def test_a_wrong_option_is_one_message(
    series: Path, tmp_path: Path, options: list[str], status: int, message: str
) -> None:
    words = ["analyze", str(series / "base"), str(series / label(50)), "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, [*words, *options])
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not (tmp_path / "o").exists()


def test_another_architecture_is_named(series: Path, tmp_path: Path) -> None:
    other = save_family(tmp_path / "wide-7", intermediate_size=32)
    with pytest.raises(ParameterMismatchError, match=r"checkpoint wide-7: .*has shape \(16, 24\)"):
        effopd.analyze(series / "base", other)


def test_a_checkpoint_that_diverged_is_named(series: Path, tmp_path: Path) -> None:
    model = family_model("qwen3")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    model.save_pretrained(tmp_path / "broken-9")
    for what in ("norms", "spectra", "subspaces"):
        with pytest.raises(NonFiniteError, match=r"checkpoint broken-9: .*layers\.1\.mlp\.up_proj"):
            effopd.analyze(series / "base", tmp_path / "broken-9", what)
