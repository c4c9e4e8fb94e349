"""`python -m effopd.integrations.verl.main`: verl's launcher with the search.

Takes verl's configuration and overrides, and `+effopd.KEY=VALUE` (docs/verl.md). Versions of verl
and its companions are checked before any is imported.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from effopd.errors import ConfigError, MissingExtraError

ACCEPTED: Mapping[str, str] = {
    "verl": "==0.9.1",
    "torch": ">=2.11,<2.14",
    "transformers": ">=5.9,<5.11",
    "ray": ">=2.50,<2.61",
    "TransferQueue": ">=0.1.10,<0.2",
    "tensordict": ">=0.10,<0.11",
}
"""Package -> versions. The plug-in overrides methods of verl's trainer and worker, which are not a
stable interface: another release of verl needs the tests of tests/verl first."""


def check_versions(installed: Callable[[str], str] = version) -> None:
    """Refuses to start without a package, or with versions that the plug-in was not made for."""
    wrong = []
    for package, accepted in ACCEPTED.items():
        try:
            found = installed(package)
        except PackageNotFoundError:
            raise MissingExtraError(
                f"{package}{accepted} is not installed: pip install 'effopd[verl]' (docs/verl.md)"
            ) from None
        if not SpecifierSet(accepted).contains(found, prereleases=True):
            wrong.append(f"{package} is {found}, accepted are {accepted}")
    if wrong:
        raise ConfigError(
            f"the verl plug-in does not know these versions: {'; '.join(wrong)}. Install the "
            "versions of docs/verl.md."
        )


def main() -> None:
    """Checks versions, then hands over to verl."""
    check_versions()
    from effopd.integrations.verl.launch import launch

    launch()


if __name__ == "__main__":
    main()
