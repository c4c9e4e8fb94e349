"""The launches of verl for models that no card trains alone: sizes, and that they fit."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from effopd.config import make_config
from effopd.doctor.cluster import Cluster, ClusterEstimate, estimate_cluster
from effopd.doctor.footprint import cache_bytes
from effopd.doctor.report import _paper_run
from effopd.doctor.sizes import model_shape
from effopd.errors import ConfigError
from effopd.models.gpus import gpu_named

EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"
HEADER = re.compile(
    r"# Runs on: (?P<cards>\d+) x (?P<gpu>H20 96GB), (?P<nodes>\d) nodes of (?P<each>\d); "
    r"at most (?P<hours>[\d.]+) hours a step\."
)
LAUNCHES = sorted(path for path in EXAMPLES.glob("*-*.sh"))
USABLE = 0.9
CARD = gpu_named("H20 96GB")
SIZES = {
    "14b": {
        "model_type": "qwen3", "hidden_size": 5120, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 17408, "vocab_size": 151936, "tie_word_embeddings": False,
    },
    "32b": {
        "model_type": "qwen2", "hidden_size": 5120, "num_hidden_layers": 64,
        "num_attention_heads": 40, "num_key_value_heads": 8, "intermediate_size": 27648,
        "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Qwen/Qwen3-14B and Qwen/Qwen2.5-32B, the students of arXiv 2605.11739."""


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


def estimate_of(path: Path, given: dict[str, str]) -> ClusterEstimate:
    """What the doctor says of a launch."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    longest = {
        "prompt.max_tokens": given["data.max_prompt_length"],
        "sampling.max_new_tokens": given["data.max_response_length"],
        "train.prompts_per_step": given["data.train_batch_size"],
        "train.responses_per_prompt": given[f"{rollout}.n"],
        "train.micro_batch_tokens": given[f"{actor}.ppo_max_token_len_per_gpu"],
    }
    config = make_config(_paper_run("m"), [f"{name}={value}" for name, value in longest.items()])
    cluster = Cluster(
        gpu=CARD,
        gpus=int(given["trainer.nnodes"]) * int(given["trainer.n_gpus_per_node"]),
        engine_gpus=int(given[f"{rollout}.tensor_model_parallel_size"]),
    )
    shape = model_shape(SIZES[_size(path)], path)
    return estimate_cluster(config, {"student": shape, "teacher": shape}, cluster)


def _size(path: Path) -> str:
    return path.stem.split("-")[1]


def test_there_is_a_launch_for_every_model_that_needs_one() -> None:
    assert {path.stem for path in LAUNCHES} == {
        *(f"{domain}-{size}" for domain in ("code", "math") for size in ("14b", "32b")),
        "teacher-14b",
        "teacher-14b-base",
    }


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_the_doctor_says_that_it_fits(path: Path, printer: Path) -> None:
    header = HEADER.search(path.read_text(encoding="utf-8"))
    assert header is not None, f"{path} does not name its cards"
    given = launched(path, printer)
    assert _size(path) in given["actor_rollout_ref.model.path"].casefold()
    found, memory = estimate_of(path, given), CARD.memory_bytes
    assert found.device_bytes <= USABLE * memory
    # Beside what training keeps, an engine has the share that the launch gives it.
    rollout = "actor_rollout_ref.rollout"
    share = float(given[f"{rollout}.gpu_memory_utilization"]) * memory
    assert found.weights_bytes + found.search_host_bytes + share <= memory
    longest = int(given["data.max_prompt_length"]) + int(given["data.max_response_length"])
    assert _engine_fits(path, longest, int(given[f"{rollout}.tensor_model_parallel_size"]), share)
    cards = int(given["trainer.nnodes"]) * int(given["trainer.n_gpus_per_node"])
    nodes = int(given["trainer.nnodes"])
    if (teacher := given.get("distillation.nnodes")) is not None:
        prefix = "distillation.teacher_models.teacher_model.inference"
        assert _engine_fits(
            path, longest, int(given[f"{prefix}.tensor_model_parallel_size"]), share
        )
        cards += int(teacher) * int(given["distillation.n_gpus_per_node"])
        nodes += int(teacher)
    assert (int(header["cards"]), int(header["nodes"])) == (cards, nodes)
    assert header["hours"] == f"{found.step_s / 3600:.1f}"


def _engine_fits(path: Path, longest: int, gpus: int, share: float) -> bool:
    """Weights and the cache of an answer, within the share of the cards that hold them."""
    shape = model_shape(SIZES[_size(path)], path)
    needed = 2 * shape.parameters + cache_bytes(shape, longest, 2)
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
    with pytest.raises(ConfigError, match="has no room for the student's weights and one answer"):
        estimate_of(path, launched(path, printer, NODES="1"))


def test_variables_and_overrides_go_through(printer: Path) -> None:
    path = EXAMPLES / "math-14b.sh"
    given = launched(path, printer, STUDENT="models/own", NODES="2")
    assert given["actor_rollout_ref.model.path"] == "models/own"
    assert given["trainer.nnodes"] == "2"
