"""What a search leaves behind, what a validator may do, and searches asked and told."""

import random
from collections.abc import Callable

import numpy as np
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
    Search,
    SinceAccepted,
    SinceRaw,
    Strict,
)
from effopd.errors import ConfigError, NonFiniteError, ValidatorError
from effopd.search.scales import Trial

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


def test_all_generators_are_put_back() -> None:
    net = Net()
    rising = Rising()

    def validate(draw: Draw) -> float:
        random.random(), np.random.rand(), torch.rand(1)
        return rising(draw)

    python, numpy, host = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    Extrapolator(net, validate, search=EVERY_STEP).step(1)
    assert (random.getstate(), str(np.random.get_state())) == (python, numpy)
    assert torch.equal(torch.get_rng_state(), host)


def test_presets_hold_what_they_are_named_after() -> None:
    paper, release = Search.paper(), Search.release()
    assert (paper.direction, paper.accept, paper.parameters) == (SinceRaw(), AtLeast(), "all")
    assert (release.direction, release.accept) == (SinceAccepted(), Strict())
    assert release.parameters == "attention_mlp"
    for preset in (paper, release):
        assert (preset.schedule, preset.scales) == (PowersOfTwo(), LadderScales())
        assert preset.guard is None
    assert LadderScales().scales == (3, 5, 7, 9, 11)


# Asked and told -----------------------------------------------------------------------------------


def moved(net: Net) -> Net:
    with torch.no_grad():
        net.mlp.weight.add_(0.25)
    return net


@pytest.mark.parametrize("validate", [Rising, Falling])
def test_a_told_search_is_the_search_that_calls_its_validator(validate: type[Rising]) -> None:
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    called = Extrapolator(nets[0], validate(), search=EVERY_STEP)
    asked = Extrapolator(nets[1], search=EVERY_STEP)
    for step in range(1, 4):
        expected = called.step(step) if moved(nets[0]) else None
        search, score = asked.begin(step) if moved(nets[1]) else None, validate()
        assert search is not None
        while (draw := search.ask()) is not None:
            search.tell(score(draw))
        assert (expected and expected.accepted_scale) == search.result.accepted_scale
        assert fingerprint(nets[0]) == fingerprint(nets[1])
    assert asked.begin(3) is None
    assert asked.state_dict()["past"] == called.state_dict()["past"]


def test_an_abandoned_search_leaves_no_trace_and_can_be_repeated() -> None:
    net = Net()
    extrapolator = Extrapolator(net, search=EVERY_STEP)
    before, host = fingerprint(moved(net)), torch.get_rng_state()
    search = extrapolator.begin(1)
    assert search is not None
    search.tell(float(search.ask() is not None))
    assert search.ask() == Draw(step=1, scale=3.0)
    assert fingerprint(net) != before
    torch.randn(3)
    search.abandon()
    assert fingerprint(net) == before
    assert torch.equal(torch.get_rng_state(), host)
    assert search.ask() is None
    search.abandon()
    assert extrapolator.state_dict()["last_step"] == 0
    assert extrapolator.begin(1) is not None


def test_a_wrong_answer_abandons_the_search() -> None:
    net = Net()
    before = fingerprint(moved(net))
    search = Extrapolator(net, search=EVERY_STEP).begin(1)
    assert search is not None
    search.tell(float(search.ask() is not None))
    search.ask()
    with pytest.raises(ValidatorError, match="a Score or a float"):
        search.tell("good")
    assert fingerprint(net) == before


def test_step_needs_a_validator() -> None:
    net = Net()
    with pytest.raises(ConfigError, match="pass validate="):
        Extrapolator(net, search=EVERY_STEP).step(1)
