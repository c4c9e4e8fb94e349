"""Stop requests."""

import os
import signal

import pytest

from effopd.training.signals import StopRequest, stop_on_signals

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_remembered_and_answered(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with stop_on_signals() as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request
        assert request.signal_number == number
    assert "finishing this step" in capfd.readouterr().err


@pytest.mark.parametrize("first", NUMBERS)
def test_ctrl_c_after_any_signal_stops_at_once(first: signal.Signals) -> None:
    with stop_on_signals():
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_other_signals_may_come_twice(second: signal.Signals) -> None:
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), second)
    assert request.signal_number == second


def test_handlers_return_even_after_an_error() -> None:
    def body() -> None:
        with stop_on_signals() as request:
            assert [signal.getsignal(number) for number in NUMBERS] == [request._receive] * 3
            raise KeyboardInterrupt

    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(KeyboardInterrupt):
        body()
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_closed_standard_error_does_not_break_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def closed(descriptor: int, data: bytes) -> int:
        raise OSError

    monkeypatch.setattr(os, "write", closed)
    request = StopRequest()
    request._receive(signal.SIGTERM, None)
    assert request
