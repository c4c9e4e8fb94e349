"""docs/cli.md and the commands say the same, word for word, in both directions."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import commands

from effopd.cli.main import STOPPED

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
COMMANDS = commands()

HEADING = re.compile(r"^## effopd (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \|$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SETTING = re.compile(r"^(?:[A-Z]{2,}|--)")


def sections(page: str) -> dict[str, str]:
    """Command -> its part of the page."""
    _, *parts = HEADING.split(page)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def documented(section: str) -> dict[str, str]:
    """Argument or option -> meaning, from the tables of a section."""
    return {name: text for name, text in ROW.findall(section) if SETTING.match(name)}


def declared(command: Any) -> dict[str, str]:
    """Argument or option -> help, from the command."""
    return {
        parameter.opts[0]
        if parameter.param_type_name == "option"
        else parameter.metavar or parameter.name.upper(): parameter.help or ""
        for parameter in command.params
    }


def test_the_page_has_every_command_and_no_other() -> None:
    assert list(sections(PAGE)) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_starts_with_the_help_of_its_command(name: str) -> None:
    assert sections(PAGE)[name].strip().splitlines()[0] == COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_has_every_option_with_its_help_and_no_other(name: str) -> None:
    assert documented(sections(PAGE)[name]) == declared(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    assert all(text.endswith(".") for text in declared(COMMANDS[name]).values())


def test_options_named_anywhere_in_the_documentation_exist() -> None:
    known = {name for command in COMMANDS.values() for name in declared(command)} | {"--help"}
    for page in (ROOT / "README.md", ROOT / "docs" / "cli.md", ROOT / "docs" / "index.md"):
        lines = [line for line in page.read_text("utf-8").splitlines() if "effopd" in line]
        named = {option for line in lines for option in OPTION.findall(line)}
        assert named <= known, page.name


def test_exit_statuses() -> None:
    statuses = {int(text) for text in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert statuses == {0, 1, 2, STOPPED}
