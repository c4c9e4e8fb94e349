"""Weights that changed under their old name."""

import os
from pathlib import Path

from effopd.models.fingerprint import weights_fingerprint


def test_name_size_and_time_count_and_nothing_else(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for directory in (a, b):
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"123")
    os.utime(a / "model.safetensors", ns=(0, 5))
    before = weights_fingerprint([a, b])
    assert before == weights_fingerprint([a, b])
    (a / "config.json").write_text("{}")
    assert weights_fingerprint([a, b]) == before
    os.utime(a / "model.safetensors", ns=(0, 6))
    assert weights_fingerprint([a, b]) != before
    os.utime(a / "model.safetensors", ns=(0, 5))
    assert weights_fingerprint([a, b]) == before
    assert weights_fingerprint([b, a]) != before
    (a / "model.safetensors").write_bytes(b"1234")
    os.utime(a / "model.safetensors", ns=(0, 5))
    assert weights_fingerprint([a, b]) != before


def test_no_weights_have_none(tmp_path: Path) -> None:
    assert weights_fingerprint([tmp_path, Path("Qwen/Qwen3-1.7B")]) == ""
