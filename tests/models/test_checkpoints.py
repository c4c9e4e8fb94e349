"""A checkpoint is whole or not there: damage, crashes, full disks and pruning."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.support import disk
from tests.support.tiny import WORLD

from effopd.data.world import make_tokenizer
from effopd.errors import CheckpointError
from effopd.models.checkpoints import (
    newest_good,
    prune,
    restore_,
    verify_checkpoint,
    weights_fingerprint,
    write_checkpoint,
)
from effopd.records import MANIFEST, checkpoint_path, checkpoint_step, list_checkpoints

FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 12, "empty.txt": b""}


def fill(directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).write_bytes(content)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = checkpoint_path(tmp_path, 8)
    write_checkpoint(directory, fill)
    return directory


def save(parent: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(checkpoint_path(parent, step), fill)


def damage(parent: Path, step: int) -> None:
    path = checkpoint_path(parent, step) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def steps_in(parent: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(parent)]


# Writing and reading ------------------------------------------------------------------------------


def test_what_was_written_is_there_and_verifies(checkpoint: Path, tmp_path: Path) -> None:
    found = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != MANIFEST}
    assert found == FILES
    verify_checkpoint(checkpoint)
    assert newest_good(tmp_path) == (checkpoint, [])
    assert os.listdir(tmp_path) == ["step-00008"]


def test_an_existing_checkpoint_is_replaced(checkpoint: Path) -> None:
    write_checkpoint(
        checkpoint, lambda directory: (directory / "other").write_bytes(b"new") and None
    )
    assert {path.name for path in checkpoint.iterdir()} == {"other", MANIFEST}
    verify_checkpoint(checkpoint)


def test_a_checkpoint_may_be_kept_besides_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    prune(tmp_path, 2, [checkpoint_path(tmp_path, 1)])
    assert steps_in(tmp_path) == [4, 3, 1]


def test_checkpoints_are_ordered_by_number_and_other_names_ignored(tmp_path: Path) -> None:
    save(tmp_path, 8, 99_999, 100_000)
    for stranger in ("step-x", "step-00009.bak", "step-", ".writing-step-00010"):
        (tmp_path / stranger).mkdir()
    (tmp_path / "step-100001").write_text("a file")
    assert steps_in(tmp_path) == [100_000, 99_999, 8]
    assert newest_good(tmp_path) == (checkpoint_path(tmp_path, 100_000), [])
    prune(tmp_path, 2)
    assert steps_in(tmp_path) == [100_000, 99_999]


def test_what_was_saved_is_restored_in_place_and_another_model_refused() -> None:
    live = {"w": torch.zeros(2), "b": torch.zeros(1, dtype=torch.float64)}
    before = dict(live)
    restore_(live, {"w": torch.ones(2), "b": torch.tensor([3.0]), "more": torch.ones(9)}, "copy")
    assert all(live[name] is before[name] for name in live)
    assert live["w"].tolist() == [1.0, 1.0]
    assert live["b"].tolist() == [3.0]
    for saved in ({"b": torch.ones(1)}, {"b": torch.ones(1), "w": torch.ones(3)}):
        with pytest.raises(CheckpointError, match=r"^the saved copy does not fit this model: w$"):
            restore_(live, saved, "copy")


# Damage -------------------------------------------------------------------------------------------


def test_every_flipped_byte_is_found(checkpoint: Path) -> None:
    rng = random.Random(0)
    flips = []
    paths = [path for path in sorted(checkpoint.iterdir()) if path.stat().st_size]
    for number in range(200):
        path = paths[number % len(paths)]
        content = bytearray(original := path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            verify_checkpoint(checkpoint)
        assert path.name in str(caught.value)
        flips.append(path.name)
        path.write_bytes(original)
        verify_checkpoint(checkpoint)
    assert len(flips) == 200
    assert set(flips) == {"config.json", "model.safetensors", MANIFEST}


def cut(path: Path, kept: float) -> None:
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a directory": replace_by_directory,
    **{f"cut to {kept}": partial(cut, kept=kept) for kept in (0.0, 0.01, 0.3, 0.5, 0.99)},
}


@pytest.mark.parametrize("name", [MANIFEST, "config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found(checkpoint: Path, name: str, kind: str) -> None:
    DAMAGES[kind](checkpoint / name)
    with pytest.raises(CheckpointError, match=name):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"null", b'{"files": 3}', b'{"files": {"a": 1}}', b"\xff", b"[" * 99999],
)
def test_a_strange_manifest_is_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        verify_checkpoint(checkpoint)


def test_a_file_the_disk_cannot_read_is_damaged(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4)
    real = Path.open

    def failing(path: Path, mode: str = "r", **options: Any) -> object:
        if path == checkpoint / "model.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, mode, **options)

    monkeypatch.setattr(Path, "open", failing)
    found, problems = newest_good(tmp_path)
    assert found == checkpoint_path(tmp_path, 4)
    assert len(problems) == 1
    assert "step-00008: model.safetensors cannot be read" in problems[0]


def test_newest_good_skips_damaged_ones_and_names_them(tmp_path: Path) -> None:
    save(tmp_path, 4, 8, 12, 16)
    damage(tmp_path, 16)
    shutil.rmtree(checkpoint_path(tmp_path, 12))
    checkpoint_path(tmp_path, 12).mkdir()
    found, problems = newest_good(tmp_path)
    assert found == checkpoint_path(tmp_path, 8)
    assert len(problems) == 2
    assert "step-00016: model.safetensors" in problems[0]
    assert f"step-00012: {MANIFEST}" in problems[1]
    damage(tmp_path, 8)
    damage(tmp_path, 4)
    assert newest_good(tmp_path)[0] is None
    assert newest_good(tmp_path / "missing") == (None, [])


def test_leftovers_of_an_interrupted_write_are_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 4)
    leftover = tmp_path / ".writing-step-00008"
    shutil.copytree(checkpoint_path(tmp_path, 4), leftover)
    assert newest_good(tmp_path) == (checkpoint_path(tmp_path, 4), [])
    prune(tmp_path, 2)
    assert os.listdir(tmp_path) == ["step-00004"]


# Pruning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "left"), [(1, [16]), (2, [16, 12]), (9, [16, 12, 8, 4])])
def test_prune_keeps_the_newest(tmp_path: Path, keep: int, left: list[int]) -> None:
    save(tmp_path, 4, 8, 12, 16)
    prune(tmp_path, keep)
    assert steps_in(tmp_path) == left


@pytest.mark.parametrize(
    ("damaged", "keep", "left"),
    [
        ([16], 1, [16, 12, 8, 4]),  # the only one kept is damaged: delete nothing
        ([16], 2, [16, 12]),
        ([16, 12], 2, [16, 12, 8, 4]),
        ([16, 12, 8], 3, [16, 12, 8, 4]),
        ([4, 8, 12, 16], 1, [16, 12, 8, 4]),
    ],
)
def test_prune_never_deletes_the_last_good_one(
    tmp_path: Path, damaged: list[int], keep: int, left: list[int]
) -> None:
    save(tmp_path, 4, 8, 12, 16)
    for step in damaged:
        damage(tmp_path, step)
    good = newest_good(tmp_path)[0]
    prune(tmp_path, keep)
    assert steps_in(tmp_path) == left
    assert newest_good(tmp_path)[0] == good


def test_prune_survives_a_directory_that_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4, 8, 12)
    real = os.rmdir

    def refuse(path: str, *args: object, **keywords: object) -> None:
        if "step-00004" in str(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real(path, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", refuse)
    prune(tmp_path, 1)
    assert newest_good(tmp_path) == (checkpoint_path(tmp_path, 12), [])
    monkeypatch.undo()
    prune(tmp_path, 1)
    assert steps_in(tmp_path) == [12]


# Crashes and refusals at every operation on files -------------------------------------------------


def save_and_prune(parent: Path) -> None:
    save(parent, 8)
    prune(parent, 1)


def test_a_crash_at_any_operation_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    """Steps 4 (good) and 8 (damaged, so that it is replaced) are there when 8 is written."""
    survivors = []
    for number in range(1, 200):
        parent = tmp_path / str(number)
        save(parent, 2, 4, 8)
        damage(parent, 8)
        try:
            with disk.crash_before(number):
                save_and_prune(parent)
        except disk.Crash:
            good, _ = newest_good(parent)
            assert good is not None, f"nothing left after a crash at operation {number}"
            survivors.append(good.name)
        else:
            break
        save_and_prune(parent)  # a restart is not disturbed by what is left
        assert os.listdir(parent) == ["step-00008"]
        verify_checkpoint(parent / "step-00008")
    assert len(survivors) > 25
    assert set(survivors) == {"step-00004", "step-00008"}
    assert survivors == sorted(survivors)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_refusal_at_any_operation_is_one_clear_error(tmp_path: Path, reason: int) -> None:
    """Every operation fails once: an error with a remedy, or the save succeeds all the same."""
    kinds = set()
    for number in range(1, 100):
        parent = tmp_path / str(number)
        save(parent, 2, 4)
        with disk.refuse_at(number, reason) as refused:
            try:
                save(parent, 8)
                error = None
            except CheckpointError as caught:
                error = caught
        if not refused:
            break
        good, problems = newest_good(parent)
        assert problems == []  # no part of a checkpoint under a final name
        verify_checkpoint(checkpoint_path(parent, 4))
        assert [name for name in os.listdir(parent) if name.startswith(".")] == []
        if error is None:  # listing a directory that is not there may fail as it likes
            assert good == checkpoint_path(parent, 8)
            continue
        kinds.add(refused[0])
        for part in (os.strerror(reason), "step-00008", "free space or fix permissions and resume"):
            assert part in str(error)
    assert kinds == {"os.mkdir", "open", "fsync", "os.rename"}


def test_files_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    with disk.watching(lambda event: order.append(event) if event == "os.rename" else None):
        save(tmp_path, 8)
    renamed = order.index("os.rename")
    assert set(order[:renamed]) == {*FILES, MANIFEST, ".writing-step-00008"}
    assert order[renamed + 1 :] == [tmp_path.name]


def tensors_and_tokenizer(directory: Path) -> None:
    save_file({"a": torch.zeros(3000)}, directory / "model.safetensors")  # 12 kB
    make_tokenizer(WORLD).save_pretrained(directory)  # 2 kB
    (directory / "trainer_state.json").write_text("0" * 50_000)


@pytest.mark.parametrize("size_bytes", [0, 100, 5000, 20_000])
def test_a_full_disk_in_compiled_writers_is_the_same_error(tmp_path: Path, size_bytes: int) -> None:
    """A limit on the size of files stops safetensors and Python alike."""
    save(tmp_path, 4)
    with (
        disk.largest_file(size_bytes),
        pytest.raises(CheckpointError, match=r"File too large.*free space"),
    ):
        write_checkpoint(checkpoint_path(tmp_path, 8), tensors_and_tokenizer)
    assert os.listdir(tmp_path) == ["step-00004"]
    write_checkpoint(checkpoint_path(tmp_path, 8), tensors_and_tokenizer)
    assert newest_good(tmp_path) == (checkpoint_path(tmp_path, 8), [])


def test_the_tokenizers_own_error_is_recognised(tmp_path: Path) -> None:
    """Its compiled part raises a bare `Exception`."""
    tokenizer = make_tokenizer(WORLD)
    with disk.largest_file(500), pytest.raises(CheckpointError, match="File too large") as caught:
        write_checkpoint(tmp_path / "step-00008", tokenizer.save_pretrained)
    assert type(caught.value.__cause__) is Exception
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TypeError("a mistake of ours")])
def test_other_errors_pass_through_and_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    save(tmp_path, 4)

    def write(directory: Path) -> None:
        fill(directory)
        raise error

    with pytest.raises(type(error)):
        write_checkpoint(checkpoint_path(tmp_path, 8), write)
    assert os.listdir(tmp_path) == ["step-00004"]


# Weights that changed under their old name --------------------------------------------------------


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
