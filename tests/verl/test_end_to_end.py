"""Real runs of verl on the CPU: two FSDP2 ranks over gloo, two rollout servers, a teacher.

Nothing is mocked. What is compared are weights read back from the rollout servers, each time one
first generated with them, and the answers they gave.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from effopd.search.selection import RELEASED_NAMES

sys.path.insert(0, str(Path(__file__).parent))  # as PYTHONPATH of the runs

from verl_rig.launching import RANKS, environment, launch, settings
from verl_rig.records import Version, Weights, points, trained_with, trials, versions
from verl_rig.world import write_world

PROMPTS = 8
LADDER = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


def overrides(steps: int, **keys: object) -> dict[str, object]:
    """Of the plug-in (`__` for `.`), and the number of steps."""
    named = {f"+effopd.{key.replace('__', '.')}": value for key, value in keys.items()}
    return {
        "trainer.total_training_steps": steps,
        "+effopd.validation.prompts": PROMPTS,
        "+effopd.search.parameters": "attention_mlp",
        **named,
    }


@pytest.fixture(scope="module")
def accepted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's search where every reward is equal: it accepts all five candidates."""
    out = tmp_path_factory.mktemp("accepted")
    launch(world, out, overrides(2, preset="paper"))
    return out


@pytest.fixture(scope="module")
def rejected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released search where every reward is equal: it accepts nothing."""
    out = tmp_path_factory.mktemp("rejected")
    launch(world, out, overrides(2, preset="release"))
    return out


RESUMED = {
    "search__scales": "{type:geometric,ratio:2,cap:8}",
    "search__accept": "{type:strict}",
    "search__guard": "none",
    "validation__resample": True,
}


@pytest.fixture(scope="module")
def resumed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored by the teacher; saved after step 3, between two searches, and resumed."""
    out = tmp_path_factory.mktemp("resumed")
    for steps in (3, 4):
        launch(world, out, overrides(steps, **RESUMED) | {"trainer.save_freq": 3})
    return out


# What is intended ---------------------------------------------------------------------------------


def student(world: Path) -> Weights:
    model = AutoModelForCausalLM.from_pretrained(world / "student", dtype=torch.float32)
    return {name: p.detach() for name, p in model.named_parameters()}


def point(anchor: Weights, tip: Weights, scale: float) -> Weights:
    """`anchor + scale * (tip - anchor)` of what is searched; the rest stays at the tip."""
    return {
        name: torch.lerp(anchor[name], tip[name], scale)
        if scale != 1.0 and RELEASED_NAMES.search(name)
        else tip[name]
        for name in tip
    }


def assert_equal(found: Weights, intended: Weights) -> None:
    assert found.keys() == intended.keys()
    different = [name for name, tensor in intended.items() if not torch.equal(found[name], tensor)]
    assert not different


def assert_search(out: Path, step: int, anchor: Weights, scales: list[float]) -> Weights:
    """Every server held every point of a search exactly; returns the tip."""
    assert [row["scale"] for row in trials(out, step)] == scales
    tips = []
    for server in range(RANKS):
        found = points(out, server, step)
        assert len(found) == len(scales)
        tip = found[0].weights
        moved = [name for name in tip if not torch.equal(tip[name], anchor[name])]
        assert any(RELEASED_NAMES.search(name) for name in moved)
        for version, scale in zip(found, scales, strict=True):
            assert_equal(version.weights, point(anchor, tip, scale))
        tips.append(tip)
    for tip in tips[1:]:
        assert_equal(tip, tips[0])
    return tips[0]


# Accept -------------------------------------------------------------------------------------------


def test_every_accepted_candidate_reaches_every_server_exactly(accepted: Path, world: Path) -> None:
    assert [row["accepted"] for row in trials(accepted, 1)] == [None, *[True] * 5]
    first = assert_search(accepted, 1, student(world), LADDER)
    assert_search(accepted, 2, first, LADDER)  # equation 1: the raw weights are the next anchor


def test_training_goes_on_from_the_accepted_point(accepted: Path, world: Path) -> None:
    tip = points(accepted, 0, 1)[0].weights
    for server in range(RANKS):
        assert_equal(trained_with(accepted, server, 1), student(world))
        assert_equal(trained_with(accepted, server, 2), point(student(world), tip, 11.0))


def test_rewards_are_the_scores(accepted: Path) -> None:
    rows = trials(accepted, 1) + trials(accepted, 2)
    assert {row["score"] for row in rows} == {0.5}


# Reject -------------------------------------------------------------------------------------------


def test_a_rejected_search_leaves_the_tip_on_every_server(rejected: Path, world: Path) -> None:
    assert [row["accepted"] for row in trials(rejected, 1)] == [None, False]
    tip = assert_search(rejected, 1, student(world), [1.0, 3.0])
    for server in range(RANKS):
        assert_equal(trained_with(rejected, server, 2), tip)
    assert_search(rejected, 2, tip, [1.0, 3.0])


def test_a_search_does_not_touch_the_generators_of_the_servers(rejected: Path) -> None:
    for server in range(RANKS):
        requests = [row for version in versions(rejected, server) for row in version.requests]
        states = [row["generator"] for row in requests]
        seeded = [row["seed"] is not None for row in requests]
        assert True in seeded
        assert False in seeded
        for i in range(1, len(requests)):
            assert (states[i] == states[i - 1]) == seeded[i]


def test_validation_is_quiet(rejected: Path) -> None:
    log = (rejected / "log.txt").read_text()
    assert log.count("effopd/accepted_scale:1.0") == 2
    assert "timing_s/search" in log
    assert "val-core" not in log
    assert "val-aux" not in log


@pytest.mark.parametrize("run", ["accepted", "rejected"])
def test_candidates_answer_the_same_prompts_with_the_same_seeds(
    run: str, request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(run)
    asked = [
        sorted(
            (row["seed"], tuple(row["prompt"]))
            for server in range(RANKS)
            for row in points(out, server, 1)[i].requests
        )
        for i in range(len(trials(out, 1)))
    ]
    assert len({seed for seed, _ in asked[0]}) == len(asked[0]) == PROMPTS
    assert all(each == asked[0] for each in asked)
    temperatures = {row["temperature"] for version in versions(out, 0) for row in version.requests}
    assert temperatures == {1.0}  # not val_kwargs.temperature, which is 0


# Resume -------------------------------------------------------------------------------------------


def test_a_resumed_run_searches_from_the_saved_anchor(resumed: Path, world: Path) -> None:
    assert {row["step"] for step in range(5) for row in trials(resumed, step)} == {1, 2, 4}
    anchor = student(world)
    for step in (1, 2, 4):  # the process that searched at 4 did not search at 2
        rows = trials(resumed, step)
        tip = assert_search(resumed, step, anchor, [row["scale"] for row in rows])
        scale = max((row["scale"] for row in rows if row["accepted"]), default=1.0)
        anchor = point(anchor, tip, scale)
        if step != 4:
            for server in range(RANKS):
                assert_equal(trained_with(resumed, server, step + 1), anchor)


def test_each_rank_saves_its_own_part_of_the_anchor(resumed: Path) -> None:
    folder = resumed / "checkpoints" / "global_step_3" / "actor"
    files = [folder / f"search-{rank:05d}-of-{RANKS:05d}.safetensors" for rank in (0, 1)]
    shards = [load_file(file) for file in files]
    whole = points(resumed, 0, 1)[0].weights
    names = [name for name in whole if RELEASED_NAMES.search(name)]
    assert [sorted(shard) for shard in shards] == [sorted(f"anchor/{n}" for n in names)] * RANKS
    for name in names:
        parts = [shard[f"anchor/{name}"] for shard in shards]
        assert all(part.numel() < whole[name].numel() for part in parts)
        assert torch.cat(parts).shape == whole[name].shape


def test_the_teacher_score_is_the_divergence_of_what_was_written(
    resumed: Path, world: Path
) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32)
    for step in (1, 2, 4):
        for i, row in enumerate(trials(resumed, step)):
            found = [points(resumed, server, step)[i] for server in range(RANKS)]
            values = [value for version in found for value in divergences(version, teacher, world)]
            assert len(values) == PROMPTS
            assert row["score"] == pytest.approx(-sum(values) / PROMPTS, abs=1e-4)
            assert row["tokens"] == sum(
                len(each["tokens"]) for version in found for each in version.requests
            )


def divergences(version: Version, teacher: torch.nn.Module, world: Path) -> list[float]:
    """Mean log-ratio to the teacher of each answer, by the weights that were read back."""
    model = AutoModelForCausalLM.from_pretrained(world / "student", dtype=torch.float32)
    model.load_state_dict(version.weights, strict=False)
    found = []
    for row in version.requests:
        ids = row["prompt"] + row["tokens"]
        ours, theirs = (log_probs(each, ids)[len(row["prompt"]) - 1 :] for each in (model, teacher))
        found.append((ours - theirs).mean().item())
    return found


@torch.no_grad()
def log_probs(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Of token i + 1 given those before."""
    scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return scores[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


# Refusals -----------------------------------------------------------------------------------------


def refusal(world: Path, out: Path, changes: dict[str, object]) -> str:
    """What the launcher says before it ends badly."""
    arguments = [f"{k}={v}" for k, v in {**settings(world, out), **changes}.items()]
    finished = subprocess.run(
        [sys.executable, "-m", "effopd.integrations.verl.main", *arguments],
        env=environment(out),
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    return finished.stdout + finished.stderr


def test_what_is_not_supported_is_refused_before_ray_starts(world: Path, tmp_path: Path) -> None:
    said = refusal(world, tmp_path, {"actor_rollout_ref.actor.strategy": "fsdp"})
    assert "actor_rollout_ref.actor.strategy = 'fsdp' is not supported by effopd: set it" in said
    assert "ray init kwargs" not in said


def test_a_checkpoint_without_its_anchor_is_refused(
    resumed: Path, world: Path, copied: Callable[[Path], Path]
) -> None:
    out = copied(resumed)
    folder = out / "checkpoints" / "global_step_4" / "actor"
    states = list(folder.glob("search-*.safetensors"))
    assert states
    for file in states:
        file.unlink()
    said = refusal(world, out, overrides(5, **RESUMED))
    assert "is missing: the checkpoint was written without effopd" in said


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies the checkpoints of a run."""
    import shutil

    def copy(run: Path) -> Path:
        shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
        return tmp_path

    return copy


# Slopes in the place of a search ------------------------------------------------------------------

DENSE = {
    "distillation.distillation_loss.loss_mode": "forward_kl_topk",
    "distillation.distillation_loss.topk": 4,
    "distillation.teacher_models.teacher_model.inference.name": "sglang",
    "distillation.distillation_loss.use_policy_gradient": False,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2,
}


def test_the_rate_follows_slopes_and_goes_on_from_a_checkpoint(world: Path, tmp_path: Path) -> None:
    """What is remembered is in verl's own optimizer checkpoint, alike on all ranks."""

    def optimizers(out: Path, step: int) -> list[Path]:
        folder = out / "checkpoints" / f"global_step_{step}" / "actor"
        return [folder / f"optim_world_size_{RANKS}_rank_{rank}.pt" for rank in range(RANKS)]

    def remembered(out: Path, step: int) -> dict[str, float]:
        states = [torch.load(path, weights_only=False) for path in optimizers(out, step)]
        groups = [state["param_groups"][0] for state in states]
        found = [{k: group[k] for k in group if k.startswith("slope_")} for group in groups]
        assert found[0] == found[1]
        return found[0]

    def run(out: Path) -> None:
        launch(world, out, overrides(2, slope="{}") | DENSE | {"trainer.save_freq": 1})

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(whole)
    assert remembered(whole, 1)["slope_factor"] not in (1.0, remembered(whole, 2)["slope_factor"])
    assert not (whole / "checkpoints" / "search.jsonl").read_text()
    # As if it had been killed after a first step that left another factor; servers start anew, so
    # answers differ. Two updates multiply the factor by 2 at most.
    shutil.copytree(whole / "checkpoints" / "global_step_1", resumed / "checkpoints/global_step_1")
    (resumed / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("1")
    for path in optimizers(resumed, 1):
        state = torch.load(path, weights_only=False)
        state["param_groups"][0]["slope_factor"] = 8.0
        torch.save(state, path)
    run(resumed)
    assert 4.0 <= remembered(resumed, 2)["slope_factor"] <= 16.0
