"""The launches of verl for models that no card trains alone: sizes, and that they fit."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from effopd.cli.planning import planned
from effopd.cli.planning_time import Planned
from effopd.config.planning import make_plan_config
from effopd.errors import ConfigError
from effopd.models.footprint import cache_bytes

EXAMPLES = Path(__file__).parents[1] / "examples" / "verl"
HEADER = re.compile(
    r"# Runs on: (?P<cards>\d+) x (?P<gpu>H20 96GB), (?P<nodes>\d) nodes of (?P<each>\d); "
    r"at most (?P<hours>[\d.]+) hours a step\."
)
LAUNCHES = sorted(path for path in EXAMPLES.glob("*-*.sh"))
USABLE = 0.9


@pytest.fixture(scope="session")
def printer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands where Python does, and prints what it would be given."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def launched(path: Path, printer: Path, **variables: str) -> dict[str, str]:
    """The overrides that a launch gives verl; the last of a key wins."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(printer), **variables}
    done = subprocess.run(
        ["bash", str(path)], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    return dict(line.lstrip("+").split("=", 1) for line in lines if "=" in line)


def plan_of(path: Path, given: dict[str, str]) -> Planned:
    """What `effopd plan` says of a launch."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    nodes, gpus = int(given["trainer.nnodes"]), int(given["trainer.n_gpus_per_node"])
    config = make_plan_config(
        [
            f"gpus={nodes * gpus}",
            f"gpus_per_node={gpus}",
            "gpu=H20 96GB",
            f"rollout_gpus={given[f'{rollout}.tensor_model_parallel_size']}",
            f"prompt_tokens={given['data.max_prompt_length']}",
            f"max_new_tokens={given['data.max_response_length']}",
            f"prompts_per_step={given['data.train_batch_size']}",
            f"responses_per_prompt={given[f'{rollout}.n']}",
            f"micro_batch_tokens={given[f'{actor}.ppo_max_token_len_per_gpu']}",
        ]
    )
    (found,) = planned(_size(path), config)
    return found


def _size(path: Path) -> str:
    return path.stem.split("-")[1]


def test_there_is_a_launch_for_every_model_that_needs_one() -> None:
    assert {path.stem for path in LAUNCHES} == {
        *(f"{domain}-{size}" for domain in ("code", "math") for size in ("14b", "32b")),
        "teacher-14b",
        "teacher-14b-base",
    }


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_the_plan_says_that_it_fits(path: Path, printer: Path) -> None:
    header = HEADER.search(path.read_text(encoding="utf-8"))
    assert header is not None, f"{path} does not name its cards"
    given = launched(path, printer)
    assert _size(path) in given["actor_rollout_ref.model.path"].casefold()
    found = plan_of(path, given)
    memory = found.job.gpu.memory_bytes
    assert found.memory.with_search <= USABLE * memory
    # Beside what training keeps, an engine has the share that the launch gives it.
    rollout = "actor_rollout_ref.rollout"
    share = float(given[f"{rollout}.gpu_memory_utilization"]) * memory
    assert found.memory.weights + found.memory.anchor_and_tip + share <= memory
    assert _engine_fits(found, int(given[f"{rollout}.tensor_model_parallel_size"]), share)
    cards = int(given["trainer.nnodes"]) * int(given["trainer.n_gpus_per_node"])
    nodes = int(given["trainer.nnodes"])
    if (teacher := given.get("distillation.nnodes")) is not None:
        prefix = "distillation.teacher_models.teacher_model.inference"
        assert _engine_fits(found, int(given[f"{prefix}.tensor_model_parallel_size"]), share)
        cards += int(teacher) * int(given["distillation.n_gpus_per_node"])
        nodes += int(teacher)
    assert (int(header["cards"]), int(header["nodes"])) == (cards, nodes)
    assert header["hours"] == f"{found.time.step_s / 3600:.1f}"


def _engine_fits(found: Planned, gpus: int, share: float) -> bool:
    """Weights and the cache of an answer, within the share of the cards that hold them."""
    shape = found.job.student
    needed = 2 * shape.parameters + cache_bytes(shape, found.job.config.longest, 2)
    return needed <= USABLE * share * gpus


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_it_has_the_numbers_of_the_paper(path: Path, printer: Path) -> None:
    given = launched(path, printer)
    rewarded = path.stem.startswith("teacher-")
    expected = {
        "data.train_batch_size": "32" if rewarded else "1024",
        "data.max_prompt_length": "2048",
        "data.max_response_length": "20480" if rewarded else "16384",
        "actor_rollout_ref.rollout.n": "16" if rewarded else "1",
        "actor_rollout_ref.actor.optim.lr": "1e-6",
    }
    assert {key: given[key] for key in expected} == expected


def test_dapo_and_grpo_differ_as_the_paper_says(printer: Path) -> None:
    actor = "actor_rollout_ref.actor"
    grpo = launched(EXAMPLES / "teacher-14b.sh", printer)
    dapo = launched(EXAMPLES / "teacher-14b-base.sh", printer)
    assert (grpo[f"{actor}.kl_loss_coef"], dapo[f"{actor}.use_kl_loss"]) == ("0.001", "False")
    assert dapo[f"{actor}.clip_ratio_high"] == "0.28"
    assert dapo["algorithm.filter_groups.enable"] == "True"


def test_fewer_gpus_than_fit_are_noticed(printer: Path) -> None:
    path = EXAMPLES / "math-32b.sh"
    with pytest.raises(ConfigError, match="has no room for its weights and one answer"):
        plan_of(path, launched(path, printer, NODES="1"))


def test_variables_and_overrides_go_through(printer: Path) -> None:
    path = EXAMPLES / "math-14b.sh"
    given = launched(path, printer, STUDENT="models/own", NODES="2")
    assert given["actor_rollout_ref.model.path"] == "models/own"
    assert given["trainer.nnodes"] == "2"
