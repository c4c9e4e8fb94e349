"""Optimizers by name: that they are the libraries' own, learn, and go on bit for bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import tiny_policy
from tests.support.learning import batch, rollouts
from tests.support.tiny import metrics_of, outcome, tiny_config, train_tiny, write_models
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError
from effopd.evaluation.routing import Teachers
from effopd.methods import FullVocabularyKL, Resources
from effopd.training.optimizers import (
    MuonAndAdamW,
    OptimizerSettings,
    load_optimizer_,
    make_optimizer,
    save_optimizer,
)
from effopd.training.settings import AverageSettings, LoopSettings, TrainSettings
from effopd.training.update import Updater

NAMES = ("adamw", "prodigy", "schedule_free", "muon", "soap")
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-2},
    "prodigy": {"options": {"d0": 1e-4, "d_coef": 2.0}},
    "schedule_free": {"lr": 1e-2},
    "muon": {"lr": 1e-2},
    "soap": {"lr": 1e-2, "options": {"precondition_frequency": 2}},
    "torch.optim:SGD": {"lr": 1e-1, "options": {"momentum": 0.9}},
}


def settings_of(name: str, **more: Any) -> OptimizerSettings:
    return OptimizerSettings(type=name, **(SETTINGS[name] | more))


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "a.weight": (6, 4),
        "b.weight": (5,),
        "lm_head.weight": (8, 4),
        "c.experts": (2, 3, 4),
    }
    return {
        name: torch.randn(shape, generator=generator).requires_grad_()
        for name, shape in shapes.items()
    }


def move(optimizer: torch.optim.Optimizer, moved: dict[str, Tensor], steps: range) -> None:
    """Updates towards 0 with noise that depends on the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for tensor in moved.values():
            noise = 0.1 * torch.randn(tensor.shape, generator=generator)
            tensor.grad = tensor.detach() + noise
        optimizer.step()


# Making one ---------------------------------------------------------------------------------------


def test_classes_get_what_their_signature_names_and_the_options() -> None:
    made = make_optimizer(settings_of("torch.optim:SGD"), tensors())
    assert isinstance(made, torch.optim.SGD)
    assert (made.defaults["lr"], made.defaults["momentum"]) == (0.1, 0.9)
    adamw = make_optimizer(OptimizerSettings(eps=1e-5, weight_decay=0.1), tensors())
    assert adamw.defaults["betas"] == (0.9, 0.95)
    assert (adamw.defaults["eps"], adamw.defaults["weight_decay"]) == (1e-5, 0.1)


def test_the_usual_rate_depends_on_the_type() -> None:
    assert OptimizerSettings().lr == 1e-4
    assert OptimizerSettings(type="prodigy").lr == 1.0
    assert OptimizerSettings(type="prodigy", lr=0.5).lr == 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", {}, "optimizer.type must be 'adamw', 'prodigy', .* or 'package.module:Class'"),
        ("torch.optim:Elf", {}, "has no 'Elf'"),
        ("no_such_package:Class", {}, "Install the package"),
        ("torch.nn:Identity", {}, "no class of torch.optim.Optimizer"),
        ("adamw", {"elves": 3}, "optimizer.options of 'adamw'.*elves"),
        ("prodigy", {"d0": -1.0}, "optimizer.options of 'prodigy'.*d0"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimizerSettings(type=name, options=options), tensors())


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    with pytest.raises(ConfigError, match=r"needs the package 'prodigyopt'.*effopd\[optimizers\]"):
        make_optimizer(settings_of("prodigy"), tensors())


def test_muon_moves_hidden_matrices_and_adamw_all_else() -> None:
    """Each as if it were alone; the head is no hidden matrix, stacked experts are no matrices."""
    ours, theirs = tensors(), tensors()
    made = make_optimizer(settings_of("muon", weight_decay=0.1), ours)
    assert isinstance(made, MuonAndAdamW)
    move(made, ours, range(4))
    muon = torch.optim.Muon(
        [theirs["a.weight"]], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    move(muon, {"a.weight": theirs["a.weight"]}, range(0))
    others = [tensor for name, tensor in theirs.items() if name != "a.weight"]
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for tensor in theirs.values():
            tensor.grad = tensor.detach() + 0.1 * torch.randn(tensor.shape, generator=generator)
        muon.step()
        adamw.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# The schedule -------------------------------------------------------------------------------------


def test_cosine_decay_starts_at_the_peak_and_halves_in_the_middle() -> None:
    optimizer = OptimizerSettings(lr=2.0, decay="cosine")
    rates = [optimizer.lr_at(step, 8) for step in range(1, 9)]
    assert rates[0] == 2.0
    assert math.isclose(rates[4], 1.0)
    assert rates == sorted(rates, reverse=True)
    assert math.isclose(rates[7], 1 + math.cos(math.pi * 7 / 8))
    warm = OptimizerSettings(lr=2.0, decay="cosine", warmup_steps=4)
    assert warm.lr_at(1, 8) == 0.5


# State on disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    whole, cut = tensors(), tensors()
    first, second = (make_optimizer(settings_of(name), moved) for moved in (whole, cut))
    move(first, whole, range(9))
    move(second, cut, range(5))
    save_optimizer(tmp_path / "optimizer.safetensors", second, cut)
    resumed = {n: tensor.detach().clone().requires_grad_() for n, tensor in cut.items()}
    third = make_optimizer(settings_of(name), resumed)
    load_optimizer_(tmp_path / "optimizer.safetensors", third, resumed)
    move(third, resumed, range(5, 9))
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert whole["a.weight"].norm() < tensors()["a.weight"].norm()  # towards 0


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    moved, path = tensors(), tmp_path / "optimizer.safetensors"
    adamw = make_optimizer(settings_of("adamw"), moved)
    move(adamw, moved, range(1))
    save_optimizer(path, adamw, moved)
    with pytest.raises(CheckpointError, match="of another optimizer: it has 1 groups"):
        load_optimizer_(path, make_optimizer(settings_of("muon"), moved), moved)
    other = tensors() | {"a.weight": torch.zeros(3, 3, requires_grad=True)}
    with pytest.raises(CheckpointError, match=r"does not fit the model: a\.weight/exp_avg"):
        load_optimizer_(path, make_optimizer(settings_of("adamw"), other), other)


def test_what_a_checkpoint_cannot_hold_is_refused(tmp_path: Path) -> None:
    moved = tensors()
    adamw = make_optimizer(settings_of("adamw"), moved)
    adamw.state[moved["a.weight"]]["elf"] = object()
    with pytest.raises(ConfigError, match=r"keeps object in a\.weight/elf"):
        save_optimizer(tmp_path / "optimizer.safetensors", adamw, moved)


# Runs ---------------------------------------------------------------------------------------------

RUN = {
    "method": "opd", "objective": {"type": "full_kl"}, "train.steps": 6, "checkpoint.every": 2,
    "evaluation": {"every": 3, "problems": 2, "first": [], "recorded": 0},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    name: {"optimizer": {"type": name} | SETTINGS[name]} for name in NAMES
} | {
    "prodigy with masters": {
        "optimizer": {"type": "prodigy"} | SETTINGS["prodigy"], "student.dtype": "bfloat16",
        "memory": {"master_weights": True, "offload_optimizer": True},
    },
    "schedule-free masters": {
        "optimizer": {"type": "schedule_free", "lr": 1e-2}, "student.dtype": "bfloat16",
        "memory": {"master_weights": True},
    },
    "muon on adapters": {
        "optimizer": {"type": "muon", "lr": 1e-2}, "student.lora": {"r": 2, "alpha": 4.0}
    },
    "average": {"average": {"decay": 0.8}},
    "window": {"average": {"window": 3}},
    "average with a search": {"average": {"decay": 0.5}, "method": "effopd"},
    "average of masters": {
        "average": {"window": 2}, "student.dtype": "bfloat16",
        "memory": {"master_weights": True},
    },
    "average of adapters": {"average": {"decay": 0.8}, "student.lora": {"r": 2, "alpha": 4.0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    tmp_path: Path, models: Path, case: str
) -> None:
    config = tiny_config(models, RUN | CASES[case])
    assert train_tiny(config, tmp_path / "whole")[0]
    assert not train_tiny(config, tmp_path / "cut", stop_after=3)[0]
    assert train_tiny(config, tmp_path / "cut")[0]
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("case", ["average", "schedule_free"])
def test_training_does_not_depend_on_evaluations_at_the_average(
    tmp_path: Path, models: Path, case: str
) -> None:
    found = []
    for every in (1, 0):
        settings = RUN | CASES[case] | {"evaluation": {"every": every, "problems": 2, "first": []}}
        train_tiny(tiny_config(models, settings), tmp_path / str(every))
        found.append(outcome(tmp_path / str(every)))
    assert (found[0].metrics, found[0].files) == (found[1].metrics, found[1].files)


def test_prodigy_records_its_estimate(tmp_path: Path, models: Path) -> None:
    train_tiny(tiny_config(models, RUN | CASES["prodigy"]), tmp_path)
    estimates = [row["optimizer_d"] for row in metrics_of(tmp_path)]
    assert estimates == sorted(estimates)
    assert estimates[-1] > estimates[0] >= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns(name: str) -> None:
    """The divergence on a fixed batch falls by more than half."""
    student, answers = tiny_policy(0), rollouts(6, 1)
    teachers = Teachers.single(tiny_policy(1))
    learner = FullVocabularyKL().learner(Resources(student=student, teachers=teachers))
    settings = LoopSettings(
        optimizer=settings_of(name), train=TrainSettings(steps=40, prompts_per_step=6)
    )
    updater = Updater(student, learner, settings)
    losses = []
    for step in range(1, 41):
        learner.prepare(batch(answers))
        updater.set_lr_(step)
        losses.append(updater.update_(answers, step)["loss"])
    assert losses[-1] < 0.5 * losses[0]


# Averages -----------------------------------------------------------------------------------------


def averaged_weights(settings: AverageSettings, steps: int) -> tuple[list[Tensor], Tensor]:
    """The points of one tensor, the first before training, and what is shown in the block."""
    student, answers = tiny_policy(0), rollouts(4, 1)
    teachers = Teachers.single(tiny_policy(1))
    learner = FullVocabularyKL().learner(Resources(student=student, teachers=teachers))
    loop = LoopSettings(optimizer=OptimizerSettings(lr=1e-2), average=settings)
    updater = Updater(student, learner, loop)
    name = next(iter(updater.live))
    points = [updater.live[name].detach().clone()]
    for step in range(1, steps + 1):
        learner.prepare(batch(answers))
        updater.set_lr_(step)
        updater.update_(answers, step)
        assert updater.average is not None
        updater.average.update_()
        points.append(updater.live[name].detach().clone())
    with updater.averaged_():
        shown = updater.live[name].detach().clone()
    assert torch.equal(updater.live[name], points[-1])
    return points, shown


def test_the_exponential_average_is_its_closed_form() -> None:
    points, shown = averaged_weights(AverageSettings(decay=0.8), 4)
    expected = 0.8**4 * points[0] + sum(
        0.2 * 0.8 ** (4 - i) * point for i, point in enumerate(points) if i > 0
    )
    torch.testing.assert_close(shown, expected)


@pytest.mark.parametrize(("window", "steps"), [(2, 4), (8, 3)])
def test_the_window_is_the_mean_of_the_last_points(window: int, steps: int) -> None:
    points, shown = averaged_weights(AverageSettings(window=window), steps)
    torch.testing.assert_close(shown, torch.stack(points[1:][-window:]).mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "average.decay must be in"),
        ({"window": 1}, "average.window must be 0"),
        ({"decay": 0.5, "window": 2}, "set one of them"),
    ],
)
def test_impossible_averages_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AverageSettings(**settings)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"method": "effopd"}, "a search would leave behind"), ({"average.decay": 0.9}, "of its own")],
)
def test_schedule_free_has_neither_search_nor_another_average(
    models: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, RUN | {"optimizer": {"type": "schedule_free"}} | more)


def test_schedule_free_is_evaluated_and_saved_at_its_average(tmp_path: Path) -> None:
    """Which is `y + (z - y) (1 - 1 / beta)`, and on a line beyond y as seen from z."""
    student, answers = tiny_policy(0), rollouts(4, 1)
    learner = FullVocabularyKL().learner(
        Resources(student=student, teachers=Teachers.single(tiny_policy(1)))
    )
    updater = Updater(student, learner, LoopSettings(optimizer=settings_of("schedule_free")))
    for step in range(1, 4):
        learner.prepare(batch(answers))
        updater.set_lr_(step)
        updater.update_(answers, step)
    name, parameter = next(iter(updater.live.items()))
    y, z = parameter.detach().clone(), updater.optimizer.state[parameter]["z"]
    with updater.averaged_():
        torch.testing.assert_close(parameter.detach(), torch.lerp(y, z, 1 - 1 / 0.9))
        assert not torch.equal(parameter, y)
    assert torch.equal(parameter, y)
    assert torch.equal(updater.state()[name], y)
