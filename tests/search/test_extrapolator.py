"""What a search leaves behind, what a validator may do, and the optimizer's momentum."""

import random
from collections.abc import Callable

import pytest
import torch
from tests.reference.core_twin import bits
from torch import Tensor, nn

from effopd import (
    AtLeast,
    Draw,
    EveryN,
    Extrapolator,
    LadderScales,
    PowersOfTwo,
    Score,
    Search,
    SinceAccepted,
    SinceRaw,
    Strict,
)
from effopd.errors import ConfigError, NonFiniteError, ValidatorError
from effopd.search.scales import GeometricScales, Trial

EVERY_STEP = Search(schedule=EveryN(n=1), scales=LadderScales(), parameters="attention_mlp")


class Net(nn.Module):
    """Two tensors that move and two that do not."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3, dtype=dtype)
        self.mlp = nn.Linear(3, 3, dtype=dtype)
        self.norm = nn.LayerNorm(3, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.mlp(self.embed(ids)))


def loss(net: Net) -> Tensor:
    return (net(torch.arange(4)).float() - torch.linspace(-1, 1, 3)).square().mean()


def train_step(net: Net, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss(net).backward()
    optimizer.step()


def fingerprint(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> object:
    """Bits of all parameters and of the optimizer's state."""
    state = optimizer.state_dict()["state"] if optimizer else {}
    return (
        {name: bits(tensor) for name, tensor in net.named_parameters()},
        {
            (i, key): bits(value) if value.is_floating_point() else value.tolist()
            for i, entries in state.items()
            for key, value in entries.items()
            if isinstance(value, Tensor)
        },
    )


class Rising:
    """A validator that likes each answer better than the one before: everything is accepted."""

    better = 1.0

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, draw: Draw) -> float:
        self.calls += 1
        return self.better * self.calls


class Falling(Rising):
    """And one that accepts nothing."""

    better = -1.0


# A search leaves no trace unless it accepts -------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", ["keep", "reset", "scale"])
def test_a_rejected_search_leaves_no_trace(dtype: torch.dtype, momentum: str) -> None:
    net = Net(dtype)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    search = Search(schedule=EveryN(n=1), scales=LadderScales(), momentum=momentum)
    extrapolator = Extrapolator(net, Falling(), search=search, optimizer=optimizer)
    for step in range(1, 4):
        train_step(net, optimizer)
        before = fingerprint(net, optimizer)
        result = extrapolator.step(step)
        assert result is not None
        assert result.accepted_scale == 1.0
        assert fingerprint(net, optimizer) == before


def test_a_rejected_search_is_the_run_without_one() -> None:
    """Sampling validators included: torch's generator is put back."""

    def train(validate: Callable[[Draw], float] | None) -> object:
        torch.manual_seed(1)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        extrapolator = Extrapolator(net, validate or Falling(), search=EVERY_STEP)
        for step in range(1, 6):
            train_step(net, optimizer)
            with torch.no_grad():
                net.mlp.weight.add_(torch.randn(3, 3), alpha=0.01)  # as dropout would draw
            if validate:
                extrapolator.step(step)
        return fingerprint(net, optimizer)

    falling = Falling()

    def sampling(draw: Draw) -> float:
        torch.randn(100)
        return falling(draw)

    assert train(sampling) == train(None)


def test_generators_are_put_back_when_the_validator_fails() -> None:
    net = Net()

    def failing(draw: Draw) -> float:
        torch.randn(3)
        raise OSError("no engine")

    extrapolator = Extrapolator(net, failing, search=EVERY_STEP)
    expected = torch.get_rng_state()
    with pytest.raises(OSError, match="no engine"):
        extrapolator.step(1)
    assert torch.equal(torch.get_rng_state(), expected)


def test_an_accepted_search_moves_the_selected_parameters_only() -> None:
    net = Net()
    start = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    extrapolator = Extrapolator(net, Rising(), search=EVERY_STEP)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(0.25)
    result = extrapolator.step(1)
    assert result is not None
    assert result.accepted_scale == 11
    for name, tensor in net.named_parameters():
        update = 11 * 0.25 if name.startswith("mlp") else 0.25
        torch.testing.assert_close(tensor.detach(), start[name] + update)


@pytest.mark.parametrize(
    "search",
    [Search(schedule=PowersOfTwo()), Search.paper(), Search.release()],
    ids=["default scales", "paper", "release"],
)
def test_searches_when_due_and_once_per_step(search: Search) -> None:
    net = Net()
    validate = Rising()
    extrapolator = Extrapolator({"w": net.mlp.weight}, validate, search=search)
    results = [extrapolator.step(step) for step in (1, 2, 3, 3, 4, 4, 5, 2)]
    found = [result and result.step for result in results]
    assert found == [1, 2, None, None, 4, None, None, None]


def test_validator_sees_each_candidate_and_the_draw() -> None:
    weight = torch.zeros(2)
    seen: list[tuple[float, Draw]] = []

    def validate(draw: Draw) -> Score:
        seen.append((float(weight[0]), draw))
        return Score(value=float(len(seen)), per_prompt=(0.0, 1.0))

    search = Search(
        scales=LadderScales(scales=(4.0, 16.0)), retest=True, schedule=PowersOfTwo(first=2)
    )
    extrapolator = Extrapolator({"w": weight}, validate, search=search)
    weight += 1.0
    assert extrapolator.step(1) is None
    result = extrapolator.step(2)
    assert result is not None
    assert [value for value, _ in seen] == [1, 4, 16, 1, 16]
    assert [draw for _, draw in seen] == [
        Draw(step=2),
        Draw(step=2, candidate=True),
        Draw(step=2, candidate=True),
        Draw(step=2, fresh=True),
        Draw(step=2, fresh=True, candidate=True),
    ]


def test_validator_runs_without_gradients() -> None:
    net = Net()

    def validate(draw: Draw) -> float:
        value = loss(net)
        assert not value.requires_grad
        return -value.item()

    result = Extrapolator(net, validate, search=EVERY_STEP).step(1)
    assert result is not None
    assert all(tensor.grad is None for tensor in net.parameters())


# A validator that misbehaves ----------------------------------------------------------------------


class AtCall:
    """Rises; at call number `call` does something else first."""

    def __init__(self, call: int, action: Callable[[], object]) -> None:
        self.call, self.action, self.calls = call, action, 0

    def __call__(self, draw: Draw) -> object:
        self.calls += 1
        answer = self.action() if self.calls == self.call else None
        return float(self.calls) if answer is None else answer


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise OSError("engine died")


def assert_restores_and_recovers(
    net: Net, action: Callable[[], object], error: type[BaseException], match: str | None = None
) -> None:
    """At the tip and at a candidate: the error comes through, the tip is back, a retry works."""
    for call in (1, 3):
        validate = AtCall(call, action)
        extrapolator = Extrapolator(net, validate, search=EVERY_STEP)
        with torch.no_grad():
            net.mlp.weight.add_(0.01)
        before = fingerprint(net)
        anchor = bits(extrapolator.state_dict()["anchor"]["mlp.weight"])
        with pytest.raises(error, match=match):
            extrapolator.step(1)
        assert fingerprint(net) == before
        state = extrapolator.state_dict()
        assert (state["last_step"], bits(state["anchor"]["mlp.weight"])) == (0, anchor)
        result = extrapolator.step(1)
        assert result is not None
        assert result.accepted_scale == 11


@pytest.mark.parametrize(
    ("action", "error"),
    [(fail, OSError), (interrupt, KeyboardInterrupt)],
    ids=["failure", "interrupt"],
)
def test_an_exception_restores_the_tip(
    action: Callable[[], object], error: type[BaseException]
) -> None:
    assert_restores_and_recovers(Net(), action, error)


@pytest.mark.parametrize("how", ["in place", "data", "new storage", "cast"])
def test_changing_the_parameters_is_an_error_and_undone(how: str) -> None:
    net = Net()

    def change() -> None:
        weight = net.mlp.weight
        if how == "in place":
            weight.add_(1e-6)
        elif how == "data":
            weight.data[2, 1] += 1e-6
        elif how == "new storage":
            weight.data = weight.data + 1e-6
        else:
            net.mlp.to(torch.bfloat16).to(torch.float32)

    assert_restores_and_recovers(net, change, ValidatorError, "changed the parameters")


def test_changing_a_mirror_is_an_error() -> None:
    masters, mirrors = {"w": torch.ones(3)}, {"w": torch.ones(3, dtype=torch.bfloat16)}

    def change() -> None:
        mirrors["w"][1] *= 2

    validate = AtCall(2, change)
    extrapolator = Extrapolator(masters, validate, search=EVERY_STEP, mirrors=mirrors)
    masters["w"] += 1.0
    with pytest.raises(ValidatorError, match="changed the parameters"):
        extrapolator.step(1)
    assert (masters["w"].tolist(), mirrors["w"].tolist()) == ([2.0] * 3, [2.0] * 3)


@pytest.mark.parametrize("answer", [True, "0.5", (1.0,)], ids=["bool", "str", "tuple"])
def test_an_answer_that_is_no_score_is_an_error(answer: object) -> None:
    assert_restores_and_recovers(Net(), lambda: answer, ValidatorError, "a Score or a float")


def test_a_tensor_is_no_score() -> None:
    action = torch.ones(1).sum
    assert_restores_and_recovers(Net(), action, ValidatorError, r"tensor\.item\(\)")


def test_a_tip_without_a_finite_score_is_an_error_at_the_tip() -> None:
    net = Net()
    extrapolator = Extrapolator(net, lambda draw: float("nan"), search=EVERY_STEP)
    before = fingerprint(net)
    with pytest.raises(NonFiniteError, match="step 1"):
        extrapolator.step(1)
    assert fingerprint(net) == before


def test_a_failing_on_trial_restores_the_tip() -> None:
    net = Net()

    def on_trial(index: int, trial: Trial) -> None:
        if index == 2:
            raise OSError("disk full")

    extrapolator = Extrapolator(net, Rising(), search=EVERY_STEP, on_trial=on_trial)
    before = fingerprint(net)
    with pytest.raises(OSError, match="disk full"):
        extrapolator.step(1)
    assert fingerprint(net) == before


def test_restoring_does_not_draw_random_numbers() -> None:
    net = Net()
    python, host = random.getstate(), torch.get_rng_state()
    Extrapolator(net, Rising(), search=EVERY_STEP).step(1)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), host)


# Momentum -----------------------------------------------------------------------------------------


def adamw(net: Net) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01)


def sgd(net: Net) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.parametrize(
    ("build", "key"), [(adamw, "exp_avg"), (sgd, "momentum_buffer")], ids=["adamw", "sgd"]
)
@pytest.mark.parametrize(("momentum", "factor"), [("keep", 1.0), ("reset", 0.0), ("scale", 0.25)])
def test_momentum_of_moved_parameters(build, key: str, momentum: str, factor: float) -> None:
    net = Net()
    optimizer = build(net)
    search = Search(schedule=EveryN(n=2), scales=LadderScales(scales=(4.0,)), momentum=momentum)
    extrapolator = Extrapolator(net, Rising(), search=search, optimizer=optimizer)
    for step in (1, 2):
        train_step(net, optimizer)
        before = {
            name: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[tensor].items()}
            for name, tensor in net.named_parameters()
        }
        result = extrapolator.step(step)
    assert result is not None
    assert result.accepted_scale == 4
    for name, tensor in net.named_parameters():
        for entry, value in optimizer.state[tensor].items():
            moved = entry == key and name.startswith("mlp")
            expected = before[name][entry] * (factor if moved else 1.0)
            assert torch.equal(torch.as_tensor(value), expected), (name, entry)


@pytest.mark.parametrize(("momentum", "kept"), [("keep", 1.0), ("reset", 0.0), ("scale", 1.0)])
def test_going_back_raises_no_momentum(momentum: str, kept: float) -> None:
    tensor = torch.ones(3)
    optimizer = torch.optim.SGD([tensor], lr=0.1, momentum=0.9)
    scales = GeometricScales(floor=0.5)
    search = Search(scales=scales, guard=None, momentum=momentum)  # type: ignore[arg-type]
    extrapolator = Extrapolator(
        {"w": tensor}, lambda draw: -tensor.sum().item(), search=search, optimizer=optimizer
    )
    optimizer.state[tensor]["momentum_buffer"] = torch.ones(3)
    tensor.add_(1.0)
    result = extrapolator.step(1)
    assert result is not None
    assert result.accepted_scale == 0.5
    assert optimizer.state[tensor]["momentum_buffer"].tolist() == [kept] * 3


def test_momentum_of_a_tensor_with_two_names_is_scaled_once() -> None:
    tensor = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([tensor], lr=0.1, momentum=0.9)
    search = Search(scales=LadderScales(scales=(4.0,)), momentum="scale")
    both = {"embed": tensor, "head": tensor}
    extrapolator = Extrapolator(both, Rising(), search=search, optimizer=optimizer)
    tensor.sum().backward()
    optimizer.step()
    extrapolator.step(1)
    assert optimizer.state[tensor]["momentum_buffer"].tolist() == [0.25] * 3


def test_a_momentum_policy_needs_the_optimizer_of_the_parameters() -> None:
    net = Net()
    search = Search(momentum="reset")
    with pytest.raises(ConfigError, match=r"pass optimizer= .*mlp\.weight.*none of its 0"):
        Extrapolator(net, Rising(), search=search)
    with pytest.raises(ConfigError, match=r"'mlp\.weight', 'mlp\.bias'\] \(2 in all\)"):
        Extrapolator(net, Rising(), search=search, optimizer=adamw(Net()))
    Extrapolator(net, Rising(), search=search, optimizer=adamw(net))


def test_presets_hold_what_they_are_named_after() -> None:
    paper, release = Search.paper(), Search.release()
    assert (paper.direction, paper.accept, paper.parameters) == (SinceRaw(), AtLeast(), "all")
    assert (release.direction, release.accept) == (SinceAccepted(), Strict())
    assert release.parameters == "attention_mlp"
    for preset in (paper, release):
        assert (preset.schedule, preset.scales) == (PowersOfTwo(), LadderScales())
        assert (preset.guard, preset.retest, preset.momentum) == (None, False, "keep")
    assert LadderScales().scales == (3, 5, 7, 9, 11)


def test_unknown_momentum() -> None:
    with pytest.raises(ConfigError, match="'keep', 'reset' or 'scale', got 'halve'"):
        Search(momentum="halve")  # type: ignore[arg-type]
