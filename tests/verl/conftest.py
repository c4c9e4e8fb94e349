"""Runs in verl need its own environment: `make test-verl`."""

from importlib.metadata import PackageNotFoundError, version

try:
    version("verl")
except PackageNotFoundError:
    collect_ignore = ["test_end_to_end.py", "test_examples.py"]
