import shutil
from pathlib import Path

import pytest
from tests.fakes import TOKENIZER, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory; tests read it."""
    directory = tmp_path_factory.mktemp("models") / "whole"
    tiny_model().save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A model directory to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))
