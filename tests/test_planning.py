"""What `effopd plan` says, against counted operations, transfers and tokens, and closed forms."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.shapes import model_and_shape
from tests.support.tiny import metrics_of, search_rows, tiny_config, train_tiny, write_models
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from effopd import Draw, Extrapolator, Search
from effopd.cli.main import app
from effopd.cli.planning import named_shape, planned
from effopd.cli.planning_searches import SimulatedSearch, simulated_searches
from effopd.cli.planning_time import Planned
from effopd.config.planning import make_plan_config
from effopd.errors import ConfigError
from effopd.models.footprint import COMPUTE_SHARE, forward_operations
from effopd.models.published import PUBLISHED
from effopd.search.direction import SinceBase
from effopd.search.schedule import EveryN, PowersOfTwo
from effopd.search.validation import Score
from effopd.training.methods import EFFOPD_SEARCH


def one(model: str, *settings: str) -> Planned:
    (found,) = planned(model, make_plan_config(settings))
    return found


# Searches -----------------------------------------------------------------------------------------

SEARCHES = {
    "paper": Search.paper(),
    "release": Search.release(),
    "ours": EFFOPD_SEARCH,
    "from the base": Search(direction=SinceBase()),
}


class Transfers(TorchDispatchMode):
    """Numbers read or written on the live tensors' side: one end copied, or both interpolated."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "copy_.default" and args[0].data_ptr() != args[1].data_ptr():
            self.numbers += args[0].numel()
        elif func.__name__ == "lerp.Scalar_out":
            self.numbers += 2 * args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("helpful", [True, False], ids=["accepted", "rejected"])
@pytest.mark.parametrize("name", SEARCHES)
def test_simulated_searches_are_those_of_the_extrapolator(name: str, helpful: bool) -> None:
    search = replace(SEARCHES[name], parameters="all", guard=None)
    module, slope = nn.Linear(3, 4), 1.0 if helpful else -1.0
    values = iter(range(1000))
    found = []

    def validate(draw: Draw) -> Score:
        value = slope * next(values)
        return Score(value=value, per_prompt=(value, value))

    extrapolator = Extrapolator(module, validate, search=search)
    for step in range(1, 9):
        with torch.no_grad():
            module.weight.add_(0.01)
        with Transfers() as transfers:
            result = extrapolator.step(step)
        if result is None:
            continue
        kinds = [trial.kind for trial in result.trials]
        found.append(
            SimulatedSearch(
                step=step,
                evaluations=len(kinds),
                candidates=kinds.count("candidate"),
                accepted=sum(t.accepted is True and t.kind == "candidate" for t in result.trials),
                copies=transfers.numbers // 16,
            )
        )
    assert list(simulated_searches(search, 8, helpful=helpful)) == found
    assert found[0].accepted == (found[0].candidates if helpful else 0)


def test_the_paper_scores_two_to_six_points_at_powers_of_two() -> None:
    for helpful, points in ((False, 2), (True, 6)):
        found = list(simulated_searches(Search.paper(), 40, helpful=helpful))
        assert [each.step for each in found] == [1, 2, 4, 8, 16, 32]
        assert {each.evaluations for each in found} == {points}


# Operations and tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_operations_of_a_pass_are_those_counted(kind: str, tmp_path: Path) -> None:
    model, shape = model_and_shape(
        kind, tmp_path, hidden_size=64, intermediate_size=192, head_dim=32
    )
    ids = torch.ones(4, 32, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(input_ids=ids)
    assert forward_operations(shape, 4 * 32, 32) == pytest.approx(
        counted.get_total_flops(), rel=0.2
    )


def test_attention_grows_with_the_length_as_counted(tmp_path: Path) -> None:
    """The counter takes whole squares, of which a causal mask leaves half."""
    model, shape = model_and_shape("qwen3", tmp_path)
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    counts = []
    for length in (64, 128):
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model(input_ids=torch.ones(1, length, dtype=torch.long))
        counts.append(counted.get_total_flops())
    grown = (counts[1] - 2 * counts[0]) / 2
    ours = forward_operations(shape, 128, 128) - 2 * forward_operations(shape, 64, 64)
    assert ours == pytest.approx(grown, rel=0.2)


def test_validation_against_a_step_in_counted_operations(tmp_path: Path) -> None:
    """One scored point with given answers, against scoring by the teacher and the update."""
    model, _ = model_and_shape("qwen3", tmp_path, hidden_size=64, intermediate_size=192)
    validation, step = torch.ones(4, 24, dtype=torch.long), torch.ones(8, 24, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as trial:
        model(input_ids=validation)
        model(input_ids=validation)  # the teacher's pass
    with FlopCounterMode(display=False) as whole:
        with torch.no_grad():
            model(input_ids=step)
        model(input_ids=step, labels=step).loss.backward()
    found = one(
        str(tmp_path), "gpus=1", "validation.type=importance_kl", "validation.source=batch",
        "validation.prompts=4", "prompts_per_step=8", "prompt_tokens=8", "max_new_tokens=16",
        "gradient_checkpointing=false",
    )  # fmt: skip
    planned_share = found.time.trial_s / (found.time.scoring_s + found.time.update_s)
    counted_share = trial.get_total_flops() / whole.get_total_flops()
    assert planned_share == pytest.approx(counted_share, rel=0.2)


def test_tokens_of_validation_against_a_step_of_a_tiny_run(tmp_path: Path) -> None:
    """Written answers: a scored point takes `validation.prompts` of a step's answers."""
    models = write_models(tmp_path / "models")
    settings = {"train.steps": 4, "validation": {"type": "teacher_kl", "prompts": 8}}
    train_tiny(tiny_config(models, settings), tmp_path / "run")
    rows = [row for row in search_rows(tmp_path / "run") if row["tokens"]]
    points = sum(row["tokens"] for row in rows) / len(rows)
    metrics = metrics_of(tmp_path / "run")
    step = sum(row["train_tokens"] for row in metrics[-1:]) / len(metrics)
    config = make_plan_config(["validation.prompts=8", "prompts_per_step=16"])
    assert config.validation.prompts / config.answers == pytest.approx(points / step, rel=0.2)


def test_a_step_of_written_answers_in_closed_form() -> None:
    """One engine a GPU, one round: each token reads the weights and half of the cache."""
    found = one("4B", "gpus=64", "validation.prompts=64")
    time, shape = found.time, named_shape("4B")
    assert time.rollout_gpus == 1
    reading = 2 * shape.parameters + 2 * shape.cached_per_token * 16 * 8192
    assert time.writing_s == pytest.approx(16384 * reading / (0.6 * 4.0e12))
    tokens = 16 * 18432
    operations = forward_operations(shape, tokens, 18432)
    assert time.scoring_s == pytest.approx(operations / (COMPUTE_SHARE * 148e12))
    assert time.update_s == pytest.approx(4 * time.scoring_s)
    alone = 2 * shape.parameters + 2 * shape.cached_per_token * 8192
    sync = 2 * shape.parameters * 63 / 64 / 50e9
    assert time.trial_s == pytest.approx(16384 * alone / (0.6 * 4.0e12) + sync, rel=1e-6)


# What the search has to save ----------------------------------------------------------------------


def cost_until(found: Planned, steps: int) -> float:
    """Of the searches of the paper that accept all, in steps."""
    searches = sum(2**i <= steps for i in range(20))
    return searches * (6 * found.time.trial_s + found.time.moving_s) / found.time.step_s


@pytest.mark.parametrize("size", ["1.5B", "32B"])
def test_steps_to_save_are_the_fewest_that_repay(size: str) -> None:
    found = one(size, "gpus=64")
    saved = found.time.must_save
    assert saved is not None
    assert 40 - saved + cost_until(found, 40 - saved) <= 40
    assert 40 - saved + 1 + cost_until(found, 40 - saved + 1) > 40
    assert found.time.accepted_share == pytest.approx(cost_until(found, 40) / 40)
    assert found.time.speedup == pytest.approx(40 / (10 + cost_until(found, 10)))


def test_a_search_that_costs_more_than_the_run_never_repays() -> None:
    found = one("1.5B", "gpus=8", "steps=1", "steps_with_search=1", "validation.prompts=1024")
    assert found.time.must_save is None
    assert found.time.speedup == pytest.approx(1 / (1 + cost_until(found, 1)))
    assert found.time.speedup < 0.6


def test_scores_on_given_answers_cost_less_than_written_ones() -> None:
    written = one("4B", "gpus=64", "validation.type=teacher_kl")
    given = one("4B", "gpus=64", "validation.type=importance_kl", "validation.source=batch")
    once = one("4B", "gpus=64", "validation.type=importance_kl", "validation.source=fresh")
    writing = written.time.trial_s - given.time.trial_s
    assert writing > 0
    assert once.time.trial_s == given.time.trial_s
    spent = [each.time.accepted_share * 40 * each.time.step_s for each in (given, once)]
    assert spent[1] - spent[0] == pytest.approx(6 * writing)


def test_an_engine_takes_the_fewest_gpus_that_hold_the_weights() -> None:
    assert one("32B", "gpus=64").time.rollout_gpus == 2
    assert one("32B", "gpus=64", "rollout_gpus=4").time.rollout_gpus == 4


# Memory -------------------------------------------------------------------------------------------


def test_memory_of_a_rank_in_closed_form() -> None:
    found = one("4B", "gpus=8", "search.parameters=all").memory
    numbers = named_shape("4B").parameters
    assert found.weights == pytest.approx(16 * numbers / 8, rel=1e-3)
    assert found.teacher == pytest.approx(2 * numbers / 8, rel=1e-3)
    assert found.search_host == pytest.approx(2 * 4 * numbers / 8, rel=1e-3)
    assert found.with_search == found.without_search
    assert found.without_search == sum(
        (found.weights, found.teacher, found.gathered, found.activations)
    )


def test_an_anchor_on_the_device_is_there_throughout() -> None:
    found = one("4B", "anchor_device=student").memory
    assert found.search_host == 0
    assert found.with_search - found.without_search == found.anchor_and_tip


def test_the_released_code_holds_two_whole_models_on_every_rank() -> None:
    for gpus in (8, 64):
        found = one("14B", f"gpus={gpus}").memory
        two = 2 * 4 * named_shape("14B").parameters
        assert found.release == found.weights + found.teacher + two
        assert found.release_host > 0.8 * two


def test_halving_the_precision_halves_what_is_kept() -> None:
    wide, narrow = one("4B"), one("4B", "dtype=bfloat16")
    assert wide.memory.weights == 2 * narrow.memory.weights
    assert wide.traffic.release_network == 2 * narrow.traffic.release_network
    assert wide.traffic.host == 2 * narrow.traffic.host


# The command --------------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_tables_have_a_row_a_model() -> None:
    result = run("1.5B,32B", "gpus=64")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert sum(line.startswith("| 1.5B |") for line in lines) == 3
    assert sum(line.startswith("| 32B |") for line in lines) == 3
    assert "(too much)" in next(line for line in lines if line.startswith("| 32B |"))


def test_json_has_bytes_and_seconds() -> None:
    result = run("4B", "--json")
    (row,) = json.loads(result.stdout)
    found = one("4B")
    assert row["memory_bytes"]["weights"] == found.memory.weights
    assert row["search_bytes"]["network"] == 0
    assert row["time"]["step_s"] == found.time.step_s


def test_models_by_size_repository_directory_and_file(tmp_path: Path) -> None:
    repository, content = PUBLISHED["4B"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    names = ["4b", repository, str(tmp_path), str(tmp_path / "config.json")]
    shapes = [named_shape(name) for name in names]
    assert shapes == [shapes[0]] * 4


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown model": (["5B"], "no model '5B': give a directory with a config.json"),
    "no model": (["4B,"], "no model '': give a directory"),
    "unknown key": (["4B", "gpu_count=8"], "unknown setting gpu_count"),
    "unknown key of the search": (["4B", "search.scale=3"], "unknown setting search.scale;"),
    "no setting": (["4B", "gpus"], "must look like section.key=value"),
    "not a number": (["4B", "gpus=many"], "gpus must be a valid integer, got 'many'"),
    "no GPUs": (["4B", "gpus=0"], "gpus must be greater than or equal to 1, got 0"),
    "nodes": (["4B", "gpus=12"], "gpus must be a multiple of gpus_per_node = 8, got 12"),
    "batch": (["4B", "prompts_per_step=1001"], "answers divide over 8 GPUs, got 1001"),
    "engines": (["4B", "rollout_gpus=3"], "rollout_gpus must divide gpus = 8, got 3"),
    "experts": (["671B", "gpus=48", "expert_ranks=48", "prompts_per_step=960"],
                "expert_ranks must divide the 256 experts of 671B, got 48"),
    "steps": (["4B", "steps_with_search=41"], "steps_with_search must be at most steps = 40"),
    "direction": (["4B", "search.direction.type=alpha_pls"],
                  "no estimate of what 'alpha_pls' remembers"),
    "unknown card": (["4B", "gpu=H1000"], "gpu must be one of H20, H100"),
    "unknown speed": (["4B", "gpu=80GB"], "gpu = '80GB' has no known speed"),
    "too small": (["671B"], "671B: an engine of 8 H20 has no room for its weights"),
    "late": (["4B", "search.schedule.first=200000"], "no search in 100,000 steps"),
    "selection": (["4B", "search.parameters=re:vision"], "matches none of"),
    "teacher": (["4B", "teacher=nobody/nothing"], "no model 'nobody/nothing'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_error(name: str) -> None:
    arguments, message = MISTAKES[name]
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        named_shape(str(path))
    with pytest.raises(ConfigError, match="missing"):
        named_shape(str(tmp_path.parent))


# The page -----------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"


def commands() -> list[list[str]]:
    lines = PAGE.read_text("utf-8").splitlines()
    return [line.split()[2:] for line in lines if line.startswith("effopd plan ")]


def test_the_page_shows_what_its_commands_print() -> None:
    page = PAGE.read_text("utf-8")
    shown = [run(*arguments) for arguments in commands()]
    assert len(shown) >= 3
    sizes = {size for arguments in commands() for size in arguments[0].split(",")}
    assert sizes == set(PUBLISHED)
    for arguments, result in zip(commands(), shown, strict=True):
        assert result.exit_code == 0, arguments
        assert result.stdout.strip() in page, arguments


def test_the_page_has_every_setting_with_its_default() -> None:
    text = PAGE.read_text("utf-8")
    config = make_plan_config()
    for name, value in config.model_dump().items():
        if name in {"search", "validation"}:
            assert f"| `{name}` |" in text
        else:
            shown = json.dumps(value) if not isinstance(value, float) else f"{value:g}"
            assert f"| `{name}` | `{shown}` |" in text, name


@pytest.mark.parametrize(
    ("settings", "searches"),
    [
        (["search.schedule.first=4"], 4),
        (["search.schedule.type=every_n", "search.schedule.n=10"], 4),
    ],
)
def test_the_schedule_is_that_of_the_settings(settings: list[str], searches: int) -> None:
    config = make_plan_config(settings)
    assert isinstance(config.search.schedule, PowersOfTwo | EveryN)
    assert one("4B", "gpus=64", *settings).time.searches == searches
