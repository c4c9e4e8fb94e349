"""A search told its scores from outside is the search of the extrapolator."""

import pytest
import torch
from torch import nn

from effopd import Draw, EveryN, Extrapolator, GeometricScales, Search, SearchResult
from effopd.errors import NonFiniteError, ValidatorError
from effopd.integrations.verl.asked import AskedSearch
from effopd.search.validation import Score

SEARCH = Search(parameters="all", schedule=EveryN(n=2), scales=GeometricScales(cap=16.0))
CPU = torch.device("cpu")


def score(net: nn.Linear) -> Score:
    """Best at weight 5."""
    return Score(value=-abs(net.weight.item() - 5.0))


def stepped() -> nn.Linear:
    """At weight 1, with the next update already done: weight 2."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    return net


def asked(net: nn.Linear) -> tuple[AskedSearch, Extrapolator]:
    search = AskedSearch(CPU)
    return search, Extrapolator(net, search.validate, search=SEARCH)


def test_it_decides_as_the_extrapolator_does() -> None:
    nets = [stepped(), stepped()]
    told, extrapolator = asked(nets[0])
    direct = Extrapolator(nets[1], lambda draw: score(nets[1]), search=SEARCH)
    for net in nets:
        nn.init.constant_(net.weight, 2.0)
    seen = []
    step = told.start(extrapolator, 2)
    while isinstance(step, Draw):
        seen.append(nets[0].weight.item())
        step = told.tell(score(nets[0]))
    expected = direct.step(2)
    assert isinstance(step, SearchResult)
    assert expected is not None
    assert [t.scale for t in step.trials] == [t.scale for t in expected.trials] == [1, 2, 4, 8]
    assert seen == [2.0, 3.0, 5.0, 9.0]
    assert step.accepted_scale == expected.accepted_scale == 4.0
    assert nets[0].weight.item() == nets[1].weight.item() == 5.0


def test_no_search_is_due() -> None:
    told, extrapolator = asked(stepped())
    assert told.start(extrapolator, 1) is None
    assert isinstance(told.start(extrapolator, 2), Draw)


def test_an_abandoned_search_leaves_the_tip_and_may_be_repeated() -> None:
    net = stepped()
    told, extrapolator = asked(net)
    nn.init.constant_(net.weight, 2.0)
    told.start(extrapolator, 2)
    told.tell(score(net))
    assert net.weight.item() == 3.0
    told.abandon("the servers are gone")
    assert net.weight.item() == 2.0
    told.abandon("nothing is open")  # allowed at any time
    assert isinstance(told.start(extrapolator, 2), Draw)


def test_errors_of_the_search_reach_the_caller() -> None:
    net = stepped()
    told, extrapolator = asked(net)
    nn.init.constant_(net.weight, 2.0)
    told.start(extrapolator, 2)
    with pytest.raises(NonFiniteError):
        told.tell(Score(value=float("nan")))
    assert net.weight.item() == 2.0


def test_weights_changed_while_it_waits_are_found_out() -> None:
    net = stepped()
    told, extrapolator = asked(net)
    told.start(extrapolator, 2)
    nn.init.constant_(net.weight, 7.0)
    with pytest.raises(ValidatorError, match="changed the parameters"):
        told.tell(score(net))


def test_the_generator_is_put_back() -> None:
    net = stepped()
    told, extrapolator = asked(net)
    nn.init.constant_(net.weight, 2.0)
    before = torch.get_rng_state()
    step = told.start(extrapolator, 2)
    while isinstance(step, Draw):
        torch.rand(3)
        step = told.tell(score(net))
    assert torch.equal(torch.get_rng_state(), before)
