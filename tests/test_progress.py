"""Progress: lines without a terminal, one live bar in it."""

import io

from rich.console import Console

from effopd.progress import Terminal


def test_a_terminal_has_a_bar_until_all_is_done_and_lines_elsewhere() -> None:
    screen, file = io.StringIO(), io.StringIO()
    live = Terminal(Console(file=screen, force_terminal=True, width=80))
    with live.progress("runs", 2) as shown:
        assert shown.is_live
        shown.advance()
        shown.advance()
    assert "2/2" in screen.getvalue()
    with live.progress("runs", 2, done=2) as shown:
        assert not shown.is_live
    with Terminal(Console(file=file, width=80)).progress("runs", 2, every_s=0.0) as shown:
        assert not shown.is_live
        shown.advance()
        shown.advance("last")
    lines = file.getvalue().splitlines()
    assert [line.split("  ")[:-1] for line in lines] == [["runs: 1/2"], ["runs: 2/2", "last"]]


def test_a_bar_keeps_the_seconds_between_lines() -> None:
    live = Terminal(Console(file=io.StringIO(), force_terminal=True))
    with live.progress("runs", 2, every_s=7.0) as shown:
        assert shown._every_s == 7.0
