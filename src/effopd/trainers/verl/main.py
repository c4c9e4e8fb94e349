"""`python -m effopd.trainers.verl.main`: verl's launcher with the search.

Takes verl's configuration and overrides, and `+effopd.KEY=VALUE` (docs/verl.md).
"""

from effopd.trainers.verl.versions import check_versions


def main() -> None:
    """Checks versions, then hands over to verl."""
    check_versions()
    from effopd.trainers.verl.launch import launch

    launch()


if __name__ == "__main__":
    main()
