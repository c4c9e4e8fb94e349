# ruff: noqa: E501
"""Which sandbox is opened, what is refused, and what replies of a server are believed."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.sandboxes import run_script, sandbox_of

from effopd.errors import ConfigError
from effopd.rewards.sandbox import opening
from effopd.rewards.sandbox.inside.values import ValueRefusedError, dump, load
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import Limits, Program, SandboxSettings, printable
from effopd.rewards.sandbox.server_process import (
    BrokenServerError,
    Ending,
    ServerProcess,
)


def test_without_a_boundary_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "landlock_abi", lambda: 0)
    with pytest.raises(ConfigError, match=r"no Landlock.*Linux 5.13 or newer.*url"):
        open_sandbox(SandboxSettings())


def test_a_boundary_that_leaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_of("landlock")
    monkeypatch.setattr(opening, "seccomp_filter", lambda: b"")
    with pytest.raises(ConfigError, match="does not hold here"):
        open_sandbox(SandboxSettings())


def test_none_warns(capsys: pytest.CaptureFixture[str]) -> None:
    sandbox = open_sandbox(SandboxSettings(kind="none"))
    assert "without a sandbox" in capsys.readouterr().err
    assert sandbox.kind == "none"
    assert run_script(sandbox, "print(1)").stdout == b"1\n"
    call = Program(source="def f(x): return x + 1", entry_point="f")
    assert [each.value for each in sandbox.run(call, [[1], [2]], Limits())] == [2, 3]
    sandbox.close()


REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (SandboxSettings, {"kind": "docker"}, "kind must be one of"),
    (SandboxSettings, {"kind": "bubblewrap"}, "'bubblewrap' was deleted: use \"landlock\""),
    (SandboxSettings, {"kind": "auto"}, "'auto' was deleted: use \"landlock\""),
    (SandboxSettings, {"processes": 0}, "processes must be 1 to 1024"),
    (SandboxSettings, {"packages": ("../x",)}, "packages must be names"),
    (SandboxSettings, {"kind": "url"}, "url must be given"),
    (SandboxSettings, {"url": "http://h"}, "url must be given"),
    (Limits, {"wall_s": 0}, "wall_s must be"), (Limits, {"cpu_s": float("nan")}, "cpu_s must be"),
    (Limits, {"memory_bytes": 1}, "memory_bytes must be"),
    (Limits, {"output_bytes": 0}, "output_bytes must be"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "message"), REFUSED)
def test_settings_check_themselves(kind: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**fields)


def test_unknown_package_is_refused() -> None:
    with pytest.raises(ConfigError, match="packages must be installed"):
        open_sandbox(SandboxSettings(packages=("no_such_package_here",)))


def test_interpreter_is_this_one() -> None:
    printed = run_script(sandbox_of("landlock"), "import sys; print(sys.version)").stdout
    assert printed.decode().strip() == sys.version


FORGERIES = {
    "silence": "", "no JSON": "print('x', flush=True)", "a list": "print('[]', flush=True)",
    "not ready": "print('{\"ready\": 1}', flush=True)",
    "endless": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
    "dies": "import sys; sys.exit('dead')",
}  # fmt: skip


@pytest.mark.parametrize("source", FORGERIES.values(), ids=FORGERIES)
def test_forged_reply_breaks_the_server_alone(tmp_path: Path, source: str) -> None:
    fake = tmp_path / "fake"
    fake.write_text(f"#!{sys.executable}\n{source}\n")
    fake.chmod(0o755)
    with pytest.raises(BrokenServerError):
        ServerProcess({}, str(fake))


ENDING: dict[str, Any] = {
    "stopped": "", "laps": 0, "exit_status": 0, "cpu_s": 0.0, "seconds": 0.1,
}  # fmt: skip


def test_only_the_kernel_says_how_it_ended() -> None:
    for status, wanted in [(0, "finished"), (256, "runtime_error"), (11, "runtime_error"),
                           (9, "memory"), (24, "timeout"), (86 << 8, "memory")]:  # fmt: skip
        ending = Ending(**ENDING | {"exit_status": status}, detail="", stdout=b"1")
        assert ending.outcome(Limits(), is_call=False).status == wanted
        assert ending.outcome(Limits(), is_call=True).status != "finished"


@pytest.mark.parametrize(
    "changed", [{"laps": "many"}, {"cpu_s": None}, {"exit_status": float("inf")}, {"seconds": []}]
)
def test_an_ending_that_is_no_number_is_none(changed: dict[str, Any]) -> None:
    assert Ending.read(ENDING, "", b"", b"") is not None
    assert Ending.read(ENDING | changed, "", b"", b"") is None
    assert Ending.read({}, "", b"", b"") is None


def test_detail_obeys_no_terminal() -> None:
    assert printable("\x1b[2J\u202eabc\x07\nd") == "[2J abc \nd"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[", b"nul", b"{}", b'{"tuple": 1}', b'{"int": "zz"}', b'{"int": 5}', b'{"float": "1"}',
        b'{"float": "infinity"}', b'{"a": 1, "b": 2}', b'{"dict": [[1]]}', b'{"dict": [[[1], 2]]}',
        b'{"set": [[1]]}', b'{"bytes": "0"}', b'{"bytes": 1}', b'{"complex": [1]}', b'{"dict": 1}',
        b'{"complex": [{"tuple": []}, 1]}', b'{"complex": 5}', b"Infinity", b"-1e999", b"1 2",
        b'{"int": "' + b"f" * 300_000 + b'"}', b"[" * 120 + b"]" * 120,
    ],
)  # fmt: skip
def test_bad_value_is_refused(text: bytes) -> None:
    with pytest.raises(ValueRefusedError):
        load(text)


def test_value_round_trip_keeps_types() -> None:
    value = [(1, -(2**70)), {"a": {1.5, float("inf")}}, frozenset({b"x"}), bytearray(b"y"), 1j, ""]
    assert load(dump(value)) == value
    assert repr(load(dump(value))) == repr(value)
