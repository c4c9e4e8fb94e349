"""The monitor against its twin and against paths whose numbers are known."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.reference.monitor_twin import Leg, Weights, twin_inertia, twin_look
from torch import Tensor, nn

from effopd.analysis.leading_pairs import leading_pair
from effopd.analysis.monitor import (
    Look,
    Monitor,
    MonitorSettings,
    inertia,
    monitored_matrices,
    sampled_names,
)
from effopd.data.world import TinyWorld, make_model
from effopd.errors import CheckpointError, ConfigError, NonFiniteError, ParameterMismatchError

Q, V, UP = (f"layers.0.{n}.weight" for n in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"))
SHAPES = {Q: (8, 6), V: (3, 6), UP: (12, 6)}
EXACT = MonitorSettings(every=1, rows=99, iterations=200)


def random_weights(seed: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Weights:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (size * torch.randn(shape, generator=rng)).to(dtype) for name, shape in SHAPES.items()
    }


class Walk:
    """Live weights under a monitor, and everything that moved them."""

    def __init__(
        self, settings: MonitorSettings = EXACT, dtype: torch.dtype = torch.float32
    ) -> None:
        self.base = random_weights(0, dtype=dtype)
        self.live = {name: tensor.clone() for name, tensor in self.base.items()}
        self.monitor = Monitor(self.live, settings)
        self.legs: list[Leg] = []
        self.steps = 0

    def train(self, update: Weights) -> Look | None:
        self._move(update, "training")
        self.steps += 1
        return self.monitor.look_if_due(self.steps)

    def look(self, update: Weights) -> Look:
        found = self.train(update)
        assert found is not None
        return found

    def jump(self, update: Weights) -> None:
        self._move(update, "jump")
        self.monitor.jump_()

    def _move(self, update: Weights, kind: str) -> None:
        for name, tensor in self.live.items():
            tensor += update[name].to(tensor.dtype)
        self.legs.append((kind, {name: tensor.clone() for name, tensor in self.live.items()}))


def scaled(weights: Weights, factor: float) -> Weights:
    return {name: factor * tensor for name, tensor in weights.items()}


def rank_one(seed: int) -> Weights:
    rng = torch.Generator().manual_seed(seed)
    return {
        n: torch.outer(torch.randn(r, generator=rng), torch.randn(c, generator=rng))
        for n, (r, c) in SHAPES.items()
    }


# Against the twin ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)],
    ids=str,
)
def test_every_look_is_that_of_the_twin(dtype: torch.dtype, tolerance: float) -> None:
    """Training and jumps by turns; bfloat16 weights are measured as they are, not rounded again."""
    walk = Walk(dtype=dtype)
    for step in range(1, 7):
        if step in {3, 4, 6}:
            walk.jump(random_weights(100 + step, 0.5))
        row = walk.look(random_weights(step, 0.1)).row()
        expected = twin_look(walk.base, walk.legs)
        assert expected.keys() == row.keys() - {"inertia", "foresight", "alarms"}
        for name, value in expected.items():
            near = None if value is None else pytest.approx(value, rel=tolerance, abs=tolerance)
            assert row[name] == near, (step, name)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_sampled_rows_stand_for_matrices_whose_rows_are_alike(rows: int) -> None:
    """Each matrix of one row, repeated: then a sample is as good as the whole."""
    sampled, whole = (Walk(MonitorSettings(every=1, rows=r, iterations=9)) for r in (rows, 99))
    for step in (1, 2, 3):
        update = {n: u[:1].expand(SHAPES[n]) for n, u in random_weights(step).items()}
        found, expected = (walk.look(update).path for walk in (sampled, whole))
    for name in ("step_cosine", "direction_cosine", "path_length", "allocation_entropy"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4), name


def test_the_spectral_share_is_never_overstated_and_grows_into_the_truth() -> None:
    update = random_weights(1)[UP].double()
    truth = torch.linalg.svdvals(update)[0].item()
    values = [leading_pair(update, None, n)[1].item() for n in (8, 20, 60, 300)]
    assert values == sorted(values)
    assert values[0] < truth
    assert values[-1] == pytest.approx(truth, rel=1e-12)
    warm = torch.ones(6, dtype=torch.float64) / math.sqrt(6)
    values = [leading_pair(update, warm, n)[1].item() for n in range(1, 6)]
    assert values == sorted(set(values))


def test_warm_starts_find_over_looks_what_one_look_does_not() -> None:
    walk = Walk(MonitorSettings(every=1, rows=1, iterations=1))
    update = random_weights(5)
    first = walk.look(update).leading
    for _ in range(300):
        last = walk.look(scaled(update, 1e-9)).leading
    expected = twin_look(walk.base, walk.legs)
    assert first.spectral_share is not None
    assert first.spectral_share < expected["spectral_share"] - 1e-4
    assert last.spectral_share == pytest.approx(expected["spectral_share"], rel=1e-5)


# Closed forms -------------------------------------------------------------------------------------


def test_a_straight_path() -> None:
    walk, update = Walk(), random_weights(1)
    for _ in range(4):
        look = walk.look(update)
    assert look.path.step_cosine == pytest.approx(1, abs=1e-5)
    assert look.path.direction_cosine == pytest.approx(1, abs=1e-5)
    assert look.path.straightness == pytest.approx(1, abs=1e-5)
    assert look.leading.alignment == pytest.approx(1, abs=1e-5)
    assert (look.foresight, look.alarms) == (True, ())


def test_a_path_there_and_back() -> None:
    walk, update = Walk(dtype=torch.float64), random_weights(1)
    looks = [walk.look(scaled(update, (-1.0) ** step)) for step in range(4)]
    assert [look.path.step_cosine for look in looks] == [None, *[pytest.approx(-1)] * 3]
    straightness = [look.path.straightness for look in looks]
    assert straightness == pytest.approx([1, 0, 1 / 3, 0], abs=1e-12)


def test_a_right_angle() -> None:
    """Legs of 3 and 4: the displacement is 5 and the path 7."""
    live = {Q: torch.zeros(2, 2), V: torch.zeros(2, 2)}
    monitor = Monitor(live, EXACT)
    live[Q][0, 0] = 3
    assert monitor.look_if_due(1) is not None
    live[V][1, 1] = 4
    look = monitor.look_if_due(2)
    assert look is not None
    path = look.path
    assert path.step_cosine == 0
    assert path.direction_cosine == pytest.approx(3 / 5)
    assert (path.displacement, path.path_length) == (5, 7)
    assert path.straightness == pytest.approx(5 / 7)
    shares = (9 / 25, 16 / 25)
    entropy = -sum(share * math.log2(share) for share in shares)
    assert path.allocation_entropy == pytest.approx(entropy)


@pytest.mark.parametrize(("moved", "expected"), [([Q], 0), ([Q, V], math.log(2) / math.log(3))])
def test_allocation_is_the_entropy_over_matrices(moved: Sequence[str], expected: float) -> None:
    walk = Walk()
    update = {n: torch.zeros(s) for n, s in SHAPES.items()}
    for name in moved:
        update[name][0, 0] = 2.0
    assert walk.look(update).path.allocation_entropy == pytest.approx(expected, abs=1e-6)


def test_equal_norms_have_the_largest_entropy() -> None:
    update = {name: tensor / tensor.norm() for name, tensor in random_weights(1).items()}
    assert Walk().look(update).path.allocation_entropy == pytest.approx(1, abs=1e-6)
    matrix = nn.Parameter(torch.zeros(2, 2))
    monitor = Monitor({Q: matrix}, EXACT)
    matrix.data += 1
    look = monitor.look_if_due(1)
    assert look is not None
    assert look.path.allocation_entropy is None  # one matrix has nothing to share


def test_a_rank_one_update_is_all_leading_pair() -> None:
    walk = Walk(MonitorSettings(every=1, iterations=1))
    leading = walk.look(rank_one(1)).leading
    assert leading.spectral_share == pytest.approx(1, abs=1e-5)
    assert leading.alignment is None
    leading = walk.look(rank_one(1)).leading
    assert leading.alignment == pytest.approx(1, abs=1e-5)


def test_a_leading_direction_that_is_gone_is_let_go() -> None:
    """The new update is orthogonal to the old vectors: an iteration from them would divide by 0."""
    live = {Q: torch.zeros(4, 4)}
    monitor = Monitor(live, MonitorSettings(every=1, iterations=1))
    for column, height in ((0, 2.0), (3, 5.0)):
        live[Q].zero_()
        live[Q][column, column] = height
        look = monitor.look_if_due(1)
    assert look is not None
    assert (look.leading.spectral_share, look.leading.alignment) == (1, 0)


def test_nothing_moved_is_no_number() -> None:
    walk = Walk()
    still = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    row = walk.look(still).row()
    known = ("displacement", "path_length", "inertia", "alarms")
    assert {value for name, value in row.items() if name not in known} == {None}
    assert [row[name] for name in known] == [0, 0, 0, []]


def test_a_skipped_update_does_not_hide_the_stretch_before_it() -> None:
    walk, update = Walk(), random_weights(1)
    walk.look(update)
    skipped = walk.look(scaled(update, 0.0))
    assert skipped.path.step_cosine is None
    assert walk.look(scaled(update, -1.0)).path.step_cosine == pytest.approx(-1, abs=1e-5)


def test_a_jump_is_part_of_the_path_and_no_sign_of_foresight() -> None:
    """Back and forth in training, and a long jump ahead in between."""
    walk, update = Walk(dtype=torch.float64), random_weights(1)
    walk.look(update)
    walk.jump(scaled(update, 9.0))
    path = walk.look(scaled(update, -1.0)).path
    assert path.step_cosine == pytest.approx(-1)
    length = math.sqrt(sum(float(t.double().norm()) ** 2 for t in update.values()))
    assert (path.displacement, path.path_length) == pytest.approx((9 * length, 11 * length))


# Momentum -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("before", "updates"), [(1, 1), (2, 1), (4, 4), (24, 4), (60, 30)])
def test_inertia_is_that_of_the_twin(momentum: float, before: int, updates: int) -> None:
    expected = twin_inertia(momentum, before, updates)
    assert inertia(momentum, before, updates) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_inertia_has_closed_forms() -> None:
    """Late in a run single updates have the cosine of the decay rate; four have another."""
    assert inertia(0.9, 10**6, 1) == pytest.approx(0.9, rel=1e-9)
    covariance = 0.9 * (1 - 0.9**4) ** 2 / 0.1**2
    variance = 4 + 2 * (3 * 0.9 + 2 * 0.9**2 + 0.9**3)
    assert inertia(0.9, 10**6, 4) == pytest.approx(covariance / variance, rel=1e-9)
    assert inertia(0.9, 1, 1) == pytest.approx(0.9 / math.hypot(0.9, 1))
    assert inertia(0.0, 7, 3) == 0


@pytest.mark.parametrize("every", [1, 3])
def test_noise_is_neither_foresight_nor_its_opposite(every: int) -> None:
    """AdamW on gradients that are noise: the excess is 0 within what 216 elements can tell."""
    base = {name: nn.Parameter(tensor) for name, tensor in random_weights(0).items()}
    optimizer = torch.optim.AdamW(base.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    settings = MonitorSettings(every=every, rows=99)
    monitor = Monitor(base, settings, momentum=0.9)
    excesses = []
    for step in range(1, 40 * every + 1):
        for name, gradient in random_weights(step).items():
            base[name].grad = gradient
        optimizer.step()
        look = monitor.look_if_due(step)
        if look is not None and look.path.step_cosine is not None:
            excesses.append(look.path.step_cosine - look.inertia)
    assert sum(excesses) / len(excesses) == pytest.approx(0, abs=0.02)
    assert max(map(abs, excesses)) < 0.25


def test_momentum_alone_is_no_foresight() -> None:
    """Stretches that agree by 0.7: enough for plain descent, not under momentum 0.9."""
    settings = MonitorSettings(every=1, rows=99, patience=2)
    first, second = random_weights(1), random_weights(2)
    size = [math.sqrt(sum(float(t.square().sum()) for t in w.values())) for w in (first, second)]
    found = {}
    for momentum in (0.0, 0.9):
        walk = Walk()
        walk.monitor = Monitor(walk.live, settings, momentum=momentum)
        for step in range(8):
            turned = float(step % 2)
            update = {n: first[n] / size[0] + turned * second[n] / size[1] for n in first}
            look = walk.look(update)
        found[momentum] = (look.foresight, look.path.step_cosine)
    assert found[0.0] == (True, pytest.approx(found[0.9][1]))
    assert found[0.9][1] == pytest.approx(0.7, abs=0.1)
    assert found[0.9][0] is False


# Verdict and settings -----------------------------------------------------------------------------


def test_the_alarm_sounds_once_when_foresight_is_lost() -> None:
    walk = Walk(MonitorSettings(every=1, patience=2, bound=0.1))
    update = random_weights(1)
    signs = (1, 1, 1, -1, -1, 1, -1, -1, -1, 1)
    looks = [walk.look(scaled(update, float(sign))) for sign in signs]
    # cosines:                             -     1     1     -1     1     -1     -1     1    1  -1
    expected = [None, None, True, False, False, False, False, False, True, False]
    assert [look.foresight for look in looks] == expected
    lost = [index for index, look in enumerate(looks) if look.alarms]
    assert lost == [3, 9]
    assert "over the last 2 looks" in looks[3].alarms[0]
    assert "+0.000 from what momentum alone gives, below the bound 0.1" in looks[3].alarms[0]


def test_looks_are_taken_when_they_are_due() -> None:
    walk = Walk(MonitorSettings(every=3, rows=99))
    update = random_weights(1)
    looks = [walk.train(update) for _ in range(7)]
    assert [look is not None for look in looks] == [False, False, True, False, False, True, False]
    assert looks[5] is not None
    assert looks[5].path.step_cosine == pytest.approx(1, abs=1e-5)


def test_a_weight_that_is_not_finite_is_an_error_that_changes_nothing() -> None:
    walk, update = Walk(), random_weights(1)
    walk.look(update)
    before = {name: tensor.clone() for name, tensor in walk.monitor.state().items()}
    kept = walk.live[Q][2, 2].item()
    walk.live[Q][2, 2] = math.nan
    with pytest.raises(NonFiniteError, match="the monitor looks at is NaN"):
        walk.monitor.look_if_due(2)
    after = walk.monitor.state()
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    walk.live[Q][2, 2] = kept
    assert walk.look(update).path.step_cosine == pytest.approx(1, abs=1e-5)


def test_the_random_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    walk = Walk()
    walk.look(random_weights(1))
    walk.jump(random_weights(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": -1}, r"monitor.every must be >= 0 \(0 is off\), got -1"),
        *(({n: 0}, f"{n} must be at least 1, got 0") for n in ("rows", "matrices", "patience")),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"bound": 2.5}, r"a difference of cosines, in \[-2, 2\], got 2.5"),
        ({"bound": math.nan}, "got nan"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MonitorSettings(**settings)


@pytest.mark.parametrize("tensors", [{}, {Q: torch.zeros(3)}, {Q: torch.zeros(2, 2, 2)}])
def test_what_is_no_matrix_is_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ParameterMismatchError, match="watches matrices"):
        Monitor(tensors, EXACT)


# Which matrices -----------------------------------------------------------------------------------


def test_attention_and_mlp_matrices_are_watched() -> None:
    model = make_model(TinyWorld(hidden=16, layers=2))
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    found = monitored_matrices(model)
    assert len(found) == 2 * 7 - 1
    assert all(tensor.ndim == 2 for tensor in found.values())
    assert not {name for name in found if "norm" in name or "embed" in name or "lm_head" in name}
    parameters = dict(model.named_parameters())
    assert all(found[name] is parameters[name] for name in found)


def test_the_sample_takes_turns_in_kind_and_is_spread_over_depth() -> None:
    kinds = ("q", "k", "v", "o")
    names = [
        f"layers.{layer}.self_attn.{kind}_proj.weight" for layer in range(32) for kind in kinds
    ]
    found = sampled_names(names, 8)
    assert [name.split(".")[3] for name in found] == [f"{kind}_proj" for kind in kinds] * 2
    assert [int(name.split(".")[1]) for name in found] == [2, 6, 10, 14, 18, 22, 26, 30]
    assert sampled_names(names, 1) == ["layers.16.self_attn.q_proj.weight"]
    assert sorted(sampled_names(names, 999)) == sorted(set(sampled_names(names, 999)))


# State --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_restored_monitor_goes_on_bit_for_bit(taken: int) -> None:
    settings = MonitorSettings(every=1, rows=2, iterations=1, matrices=2)
    old, new = Walk(settings), Walk(settings)
    for step in range(taken):
        old.look(random_weights(step, 0.1))
        old.jump(random_weights(50 + step, 0.3))
    state = {name: tensor.clone() for name, tensor in old.monitor.state().items()}
    new.monitor.load_state(state)
    for name, tensor in old.live.items():
        new.live[name].copy_(tensor)
    for step in range(taken, taken + 4):
        ours, theirs = (walk.look(random_weights(step, 0.1)).row() for walk in (new, old))
        assert ours == theirs
    for name, tensor in state.items():  # what was loaded is not written to
        assert torch.equal(tensor, state[name])


def test_a_run_that_began_elsewhere_is_refused() -> None:
    state = Walk().monitor.state()
    live = {name: tensor + 1e-3 for name, tensor in random_weights(0).items()}
    with pytest.raises(CheckpointError, match=r"the one the run began with.*monitor.every=0"):
        Monitor(live, EXACT).load_state(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recent": None}, "not the state of a monitor"),
        ({"elves": torch.zeros(1)}, "not the state of a monitor: .*elves"),
        ({"path/last": None}, r"missing \['last'\]"),
        ({"path/last": torch.zeros(3)}, r"last: expected .*got \(3,\)"),
        ({f"leading/left/{Q}": torch.zeros(3)}, "left/.*q_proj.*got"),
        ({f"leading/right/{Q}": None}, r"missing \['right/"),
        ({"leading/left/other": torch.zeros(3)}, r"extra \['left/other'\]"),
    ],
)
def test_the_state_of_something_else_is_refused(
    change: dict[str, Tensor | None], message: str
) -> None:
    walk = Walk()
    walk.look(random_weights(1))
    state = {n: t for n, t in (walk.monitor.state() | change).items() if t is not None}
    with pytest.raises(ParameterMismatchError, match=message):
        Walk().monitor.load_state(state)
