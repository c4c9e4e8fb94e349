"""README.md: its Python runs, its recipe is the same run, its numbers are docs/search.md's."""

import json
import re
import runpy
import tomllib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import save
from torch import nn

import effopd
from effopd.training.config import Config, load_config, make_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text("utf-8")


def block(language: str, containing: str) -> str:
    """The block of a language that has a text in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def smaller(text: str) -> str:
    """The same with sizes for a test; nothing else is changed."""
    for name, size in (("max_new_tokens", 4), ("steps", 2)):
        text, count = re.subn(rf'(\b{name}"?(?::| =) )\d+', rf"\g<1>{size}", text)
        assert count, name
    return text


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the README takes for granted: two models and a file of problems."""
    save(tmp_path / "models" / "student", "qwen3")
    save(tmp_path / "models" / "teacher", "qwen3", seed=1)
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(300)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(config: Config) -> dict[str, Any]:
    """What decides a run, without the place that the reward comes from."""
    values = config.model_dump(mode="json", exclude={"device"})
    values["task"].pop("verifier")
    return values


def test_ten_lines_train_and_the_recipe_is_the_same_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = block("python", "effopd.train(")
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    script = workplace / "script.py"
    script.write_text(smaller(source), encoding="utf-8")
    run = runpy.run_path(str(script), run_name="__main__")["run"]
    assert run.finished
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert run.metrics[0]["lr"] != 1e-4  # it follows the slopes
    assert run.search == []
    assert capsys.readouterr().out.startswith("runs/mine/checkpoints/step-00002 ")
    assert effopd.load_run("runs/mine").metrics == run.metrics
    recipe = make_config(tomllib.loads(smaller(block("toml", "student"))))
    assert settings(recipe) == settings(load_config("runs/mine/config.toml"))


def test_lines_for_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(mlp=nn.Linear(4, 1)))
    batch = torch.randn(64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def loss() -> torch.Tensor:
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()

    def update(model: nn.Module) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    names = {"effopd": effopd, "update": update, "steps": 4, "validate": lambda _: -loss().item()}
    before = loss().item()
    exec(block("python", "Extrapolator("), names | {"model": model})
    assert loss().item() < before / 10  # four steps alone take 2% off


def test_three_lines_of_analysis(workplace: Path) -> None:
    (workplace / "models" / "student").rename(workplace / "models" / "base")
    save(workplace / "checkpoint-100", "qwen3", seed=2)
    save(workplace / "checkpoint-200", "qwen3", seed=3)
    names: dict[str, Any] = {"effopd": effopd}
    *_, table, figure = block("python", "effopd.analyze(").splitlines()
    exec(block("python", "effopd.analyze(") + f"table = {table}\nfigure = {figure}\n", names)
    assert set(names["table"]["checkpoint"]) == {"checkpoint-100", "checkpoint-200"}
    assert {"spectral_share", "effective_rank", "noise_effective_rank"} <= set(names["table"])
    assert names["figure"]["data"]


def test_numbers_are_those_of_the_page_on_the_search() -> None:
    figure = runpy.run_path(str(ROOT / "bench" / "readme_figure.py"))
    steps = figure["steps_to_90"]((ROOT / "docs" / "search.md").read_text("utf-8"))
    median = {key: value.median for key, value in steps.items()}
    rates = figure["RATES"]
    for world, ours, vanilla in (
        ("sharpen", [5, 5, 4, 3], [None, 20, 8]),
        ("mixed", [7, 7, 5, 5], [None, 32, 16]),
    ):
        assert [median[world, "effopd", rate] for rate in rates] == ours
        assert [median[world, "opd", rate] for rate in rates[1:]] == vanilla
        assert median[world, "opd-reuse", "1e-3"] == ours[-1]
    assert steps["mixed", "opd", "3e-4"] == (32, 28, None)
    assert steps["sharpen", "effopd", "3e-4"] == (4, 3, 4)
    for rate in figure["SLOPE_RATES"]:
        assert steps["sharpen", "slope", rate] == (2, 1 if rate == "1e-5" else 2, 2)
        assert steps["mixed", "slope", rate] == (4, 3, 5 if rate == "1e-3" else 4)


def test_numbers_of_the_real_model_are_those_of_its_file() -> None:
    study = runpy.run_path(str(ROOT / "bench" / "real_model.py"))
    measured = study["read"]()
    assert {each.method for each in measured} == {"teacher", *study["METHODS"]}  # a row each
    page, readme = (
        " ".join((ROOT / name).read_text("utf-8").split())
        for name in ("docs/real-model.md", "README.md")
    )
    for table in (("smollm2", "records"), ("smollm2", "sums"), ("smollm2-rivals", "records")):
        rows = study["table"](measured, *table)
        assert rows
        assert [row for row in rows if " ".join(row.split()) not in page] == []
    for task in ("records", "sums"):
        tokens, seconds = (
            study["ratio"](measured, task, cost) for cost in ("sampled_tokens", "cpu_s")
        )
        claim = f"{tokens:.2f} of vanilla's tokens and {seconds:.2f} of its seconds"
        assert claim in page
        assert claim in readme


def test_snippets_to_start_with_run(workplace: Path) -> None:
    """docs/start.md from top to bottom."""
    page = (ROOT / "docs" / "start.md").read_text("utf-8")
    source = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {}
    exec(smaller(source), names)
    assert names["run"].finished
    assert [row["step"] for row in names["run"].metrics] == [1, 2]
    assert len(names["after"].to_pandas()) == len(names["before"].to_pandas()) == 100
    for picture in ("accuracy.png", "search.png", "norms.png"):
        assert (workplace / picture).read_bytes().startswith(b"\x89PNG")
