"""Versions that the plug-in was not made for are refused by name."""

from importlib.metadata import PackageNotFoundError

import pytest

from effopd.errors import ConfigError, MissingExtraError
from effopd.integrations.verl.main import ACCEPTED, check_versions

GOOD = {
    "verl": "0.9.1",
    "torch": "2.13.0+cpu",
    "transformers": "5.10.4",
    "ray": "2.60.0",
    "TransferQueue": "0.1.11",
    "tensordict": "0.10.0",
}


def test_accepted_versions_pass() -> None:
    assert GOOD.keys() == ACCEPTED.keys()
    check_versions(GOOD.__getitem__)


@pytest.mark.parametrize(
    ("package", "found"),
    [
        ("verl", "0.9.0"),
        ("verl", "0.9.1.post1"),
        ("verl", "0.10.0"),
        ("transformers", "5.11.0"),
        ("torch", "2.14.0"),
        ("ray", "2.61.0"),
        ("TransferQueue", "0.2.0"),
        ("tensordict", "0.11.0"),
    ],
)
def test_others_are_refused_by_name(package: str, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"{package} is {found}, accepted are .*docs/verl.md"):
        check_versions((GOOD | {package: found}).__getitem__)


def test_a_missing_package_names_the_extra() -> None:
    def installed(package: str) -> str:
        if package == "ray":
            raise PackageNotFoundError(package)
        return GOOD[package]

    with pytest.raises(MissingExtraError, match=r"ray>=.* is not installed: pip install"):
        check_versions(installed)
