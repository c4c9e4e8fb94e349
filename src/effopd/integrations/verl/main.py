"""`python -m effopd.integrations.verl.main`: verl's launcher with the search.

Takes verl's configuration and overrides, and `+effopd.KEY=VALUE` (docs/verl.md).
"""

from effopd.integrations.verl.versions import check_versions


def main() -> None:
    """Checks versions, then hands over to verl."""
    check_versions()
    from effopd.integrations.verl.launch import launch

    launch()


if __name__ == "__main__":
    main()
