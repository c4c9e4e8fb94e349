"""Headers of safetensors files: what is read, and everything that is not."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from effopd.errors import CheckpointError
from effopd.models.headers import (
    BITS,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Stored,
    read_header,
    read_model_header,
)


def entry(shape: Any = (2,), start: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def write(path: Path, header: str | bytes | dict[str, Any], data_bytes: int = 8) -> Path:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data_bytes))
    return path


def reason(path: Path, read: Any = read_header) -> str:
    with pytest.raises(CheckpointError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path} is damaged (") or read is read_model_header
    return message


def library_opens(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return bool(file.keys() or True)
    except SafetensorError:
        return False


# What is read -------------------------------------------------------------------------------------


def test_shapes_kinds_and_places_are_the_library_s(tmp_path: Path) -> None:
    tensors = {
        "b.w": torch.zeros(3, 2, dtype=torch.bfloat16),
        "a.w": torch.zeros(4, dtype=torch.float64),
        "scalar": torch.tensor(2),
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"format": "pt"})
    found = read_header(path)
    with safe_open(path, framework="pt") as file:
        assert list(found) == list(file.keys())
        for name, stored in found.items():
            part = file.get_slice(name)
            assert (stored.shape, stored.kind) == (tuple(part.get_shape()), part.get_dtype())
            assert stored.end - stored.start == tensors[name].nbytes
    assert read_model_header(path) == found


@pytest.mark.parametrize("kind", BITS)
def test_every_kind_of_the_format_has_its_size(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x", {"w": entry([8], 0, BITS[kind], kind)}, BITS[kind])
    assert read_header(path) == {"w": Stored((8,), kind, 0, BITS[kind])}
    assert library_opens(path)


@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_whatever_the_library_writes_is_read(shapes: list[list[int]]) -> None:
    tensors = {f"t{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    with TemporaryDirectory() as directory:
        path = Path(directory) / "x"
        path.write_bytes(save(tensors))
        found = read_header(path)
    assert {name: stored.shape for name, stored in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


# Damaged: refused by the library as well ----------------------------------------------------------

A = entry()
DAMAGED: dict[str, tuple[Any, int]] = {
    "list": ("[]", 0),
    "no-json": ("{", 0),
    "noise": (b"\xff" * 40, 8),
    "utf-16": (json.dumps({"w": A}).encode("utf-16"), 8),
    "deep": ("[" * 100_000 + "]" * 100_000, 0),
    "deep-object": ('{"a":' * 100_000 + "1" + "}" * 100_000, 0),
    "beyond-the-end": ({"w": entry(end=16, shape=[4])}, 8),
    "backwards": ({"w": entry(start=8, end=0)}, 8),
    "overlap": ({"v": A, "w": entry(start=4, end=12)}, 12),
    "hole": ({"v": A, "w": entry(start=12, end=20)}, 20),
    "late-start": ({"w": entry(start=4, end=12)}, 12),
    "trailing": ({"w": A}, 9),
    "missing-data": ({"w": A}, 7),
    "shape": ({"w": entry(shape=[3])}, 8),
    "overflow": ({"w": entry(shape=[2**62, 2**62], end=0)}, 0),
    "negative-shape": ({"w": entry(shape=[-2])}, 8),
    "negative-offset": ({"w": entry(start=-8, end=0)}, 8),
    "float-shape": ({"w": entry(shape=[2.0])}, 8),
    "bool-shape": ({"w": entry(shape=[True, 2])}, 8),
    "text-shape": ({"w": {**A, "shape": "2"}}, 8),
    "huge-integer": ('{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}}', 8),
    "three-offsets": ({"w": {**A, "data_offsets": [0, 4, 8]}}, 8),
    "no-dtype": ({"w": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "unknown-dtype": ({"w": entry(dtype="F33")}, 8),
    "dtype-no-text": ({"w": entry(dtype=["F32"])}, 8),
    "metadata-no-object": ({"__metadata__": [], "w": A}, 8),
    "metadata-no-text": ({"__metadata__": {"format": 3}, "w": A}, 8),
    "entry-no-object": ({"w": 3}, 8),
    "not-whole-bytes": ({"w": entry(shape=[3], dtype="F4", end=1)}, 1),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers(tmp_path: Path, name: str) -> None:
    header, data_bytes = DAMAGED[name]
    path = write(tmp_path / "x", header, data_bytes)
    assert reason(path).endswith("): download or export it again")
    assert not library_opens(path)


@pytest.mark.parametrize("length", [0, 7, 8, 20])
def test_files_that_end_early(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x", {"w": A})
    path.write_bytes(path.read_bytes()[:length])
    assert "it ends within its header" in reason(path)
    assert not library_opens(path)


def test_a_header_that_claims_more_than_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    assert f"at most {MAX_HEADER_BYTES} are read" in reason(path)
    path.write_bytes((2**64 - 1).to_bytes(8, "little") + b"{}")
    assert f"a header of {2**64 - 1} bytes" in reason(path)


# Refused although the library accepts it ----------------------------------------------------------


def test_a_name_twice(tmp_path: Path) -> None:
    text = json.dumps(A)
    path = write(tmp_path / "x", f'{{"w": {text}, "w": {text}}}')
    assert library_opens(path)
    assert "'w' is there twice" in reason(path)
    path = write(tmp_path / "y", f'{{"w": {text[:-1]}, "dtype": "F32"}}}}')
    assert "'dtype' is there twice" in reason(path)


@pytest.mark.parametrize(
    "name",
    ["../../escape", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "", "a b", "a\nb", "a\0b", "é",
     "\x1b[2J", "<script>alert(1)</script>", "\u202ex", "w" * 501, "-rf"],
)  # fmt: skip
def test_names_that_are_no_names_of_weights(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x", {name: A})
    assert library_opens(path)
    assert set(read_header(path)) == {name}, "files of our own may have such names"
    message = reason(path, read_model_header)
    assert message.isprintable()
    assert "names of weights have up to 500 letters" in message


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.weight", "transformer.h.0.attn.c_attn.bias", "0", "_x-1",
     "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"],
)  # fmt: skip
def test_names_that_are(tmp_path: Path, name: str) -> None:
    assert set(read_model_header(write(tmp_path / "x", {name: A}))) == {name}


@pytest.mark.parametrize("shape", [[0, 2**31], [0, 10**12], [10**18, 0]])
def test_tensors_without_elements_and_of_any_size(tmp_path: Path, shape: list[int]) -> None:
    path = write(tmp_path / "x", {"w": entry(shape, 0, 0)}, 0)
    assert library_opens(path)
    assert f"has shape {tuple(shape)} and no elements" in reason(path, read_model_header)
    path = write(tmp_path / "y", {"w": entry([0, 2**31 - 1], 0, 0)}, 0)
    assert read_model_header(path)["w"].shape == (0, 2**31 - 1)


@pytest.mark.parametrize("shape", [[1] * 17, [0, 2**63]])
def test_shapes_beyond_what_a_tensor_has(tmp_path: Path, shape: list[int]) -> None:
    size = 0 if 0 in shape else 4
    assert "has no possible shape" in reason(write(tmp_path / "x", {"w": entry(shape, 0, size)}, 4))


def test_more_tensors_than_a_model_has(tmp_path: Path) -> None:
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = ",".join(f'"{i}":{empty}' for i in range(MAX_TENSORS + 1))
    path = write(tmp_path / "x", "{" + text + "}", 0)
    assert f"{MAX_TENSORS + 1} tensors; at most {MAX_TENSORS} are read" in reason(path)


# Not files ----------------------------------------------------------------------------------------


def test_pipes_devices_and_directories(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    (tmp_path / "zeros").symlink_to("/dev/zero")
    assert "no regular file" in reason(tmp_path / "pipe")
    assert "no regular file" in reason(tmp_path / "zeros")
    assert "Is a directory" in reason(tmp_path)
    assert "No such file" in reason(tmp_path / "nowhere")


def test_any_flipped_byte_of_a_header_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"v": A, "w": entry(start=8, end=16)}, 16)
    good = path.read_bytes()
    for position in range(len(good) - 16):
        for flip in (1, 0x20, 0x80):
            path.write_bytes(
                good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :]
            )
            try:
                found = read_header(path)
            except CheckpointError:
                continue
            assert library_opens(path)
            places = {name: (stored.start, stored.end) for name, stored in found.items()}
            assert sorted(places.values()) == [(0, 8), (8, 16)]
