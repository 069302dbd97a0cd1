"""Checkpoint files: every form that is accepted, every kind that is refused."""

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.smlp import SMLP
from utils.errors import UsageError
from utils.records.checkpoint import (
    FORMAT,
    describe,
    load_checkpoint,
    require_fit,
    weights_sha256,
    write_checkpoint,
)
from utils.records.typed import LIMIT, content_sha256

WEIGHTS = SMLP().state_dict()
METADATA = {
    "model": {"name": "SMLP", "arguments": {}},
    "dataset": {"name": "mnist_4_9"},
    "classes": [4, 5, 6, 7, 8, 9],
}
NO_TENSOR = {**METADATA, "format": FORMAT, "weights": {"a": 3}}


def on_cuda(path: Path) -> None:
    """Rewrite a checkpoint as if its tensors had been saved from the GPU."""
    with zipfile.ZipFile(path) as source:
        entries = [(entry, source.read(entry)) for entry in source.infolist()]
    with zipfile.ZipFile(path, "w") as target:
        for entry, content in entries:
            if entry.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            target.writestr(entry.filename, content)


FORMS = {
    "bare": WEIGHTS,
    "state_dict": {"state_dict": WEIGHTS, "epoch": 3},
    "model_state_dict": {"model_state_dict": WEIGHTS, "optimizer_state_dict": {}},
    "model": {"model": WEIGHTS},
    "nested": {"model": {"state_dict": WEIGHTS}},
    "DataParallel": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()},
    "compiled": {f"_orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    "both": {"model": {f"module._orig_mod.{name}": t for name, t in WEIGHTS.items()}},
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("form", FORMS)
def test_state_dicts_of_others(tmp_path, form, device):
    path = tmp_path / "weights.pt"
    torch.save(FORMS[form], path)
    if device == "cuda":
        on_cuda(path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.metadata == {}
    assert checkpoint.weights.keys() == WEIGHTS.keys()
    model = SMLP()
    require_fit(model, checkpoint)
    model.load_state_dict(checkpoint.weights)
    assert weights_sha256(model.state_dict()) == weights_sha256(WEIGHTS)


def test_files_of_before_torch_1_6(tmp_path):
    torch.save(WEIGHTS, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    assert weights_sha256(load_checkpoint(tmp_path / "c.pt").weights) == weights_sha256(WEIGHTS)


def test_wrappers_that_contain_themselves_are_refused(tmp_path):
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UsageError, match="holds no state dict"):
        load_checkpoint(tmp_path / "c.pt")


def test_own_checkpoint_and_its_plain_values(tmp_path):
    metadata = {**METADATA, "epoch": 3, "metrics": {"loss": 0.1}}
    write_checkpoint(tmp_path / "c.pt", WEIGHTS, metadata)
    assert os.listdir(tmp_path) == ["c.pt"]
    checkpoint = load_checkpoint(tmp_path / "c.pt")
    assert checkpoint.metadata == metadata
    assert weights_sha256(checkpoint.weights) == weights_sha256(WEIGHTS)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch.save", "torch.save legacy", "pickle"])
def test_hostile_file_is_refused_and_not_run(tmp_path, form):
    path = tmp_path / "hostile.pt"
    content = {**WEIGHTS, "hook": Hostile(tmp_path / "proof")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch.save")
    with pytest.raises(UsageError, match="can run code"):
        load_checkpoint(path)
    assert os.listdir(tmp_path) == ["hostile.pt"]


def test_damaged_files(tmp_path):
    path = tmp_path / "c.pt"
    write_checkpoint(path, WEIGHTS, METADATA)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        **{f"cut off at {size}": whole[:size] for size in range(1, len(whole) - 50, 7777)},
        "cut off near its end": whole[:-100],
        "a byte changed": whole[:50_000] + bytes([whole[50_000] ^ 1]) + whole[50_001:],
        "text": b"layer1.weight\n",
        "zeros": bytes(1000),
        "other zip": None,
    }
    for name, content in damaged.items():
        if content is None:
            with zipfile.ZipFile(path, "w") as other:
                other.writestr("a", "b")
        else:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=str(path)) as raised:
            load_checkpoint(path)
        assert "\n" not in str(raised.value), name


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"layer1.weight": 3},
        {3: torch.zeros(1)},
        torch.zeros(3),
        {"a": torch.zeros(3).to_sparse()},
        {"a": torch.tensor([1.0, float("nan")])},
        {"a": torch.zeros(3) + 1j},
        {"a": torch.zeros(4, 1).expand(4, 10**8)},
        {**NO_TENSOR, "sha256": content_sha256(NO_TENSOR)},
    ],
    ids=str,
)
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UsageError, match="holds no state dict"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"format": "djsw-checkpoint-0", "weights": WEIGHTS},
        {"format": FORMAT},
        {"format": FORMAT, "weights": WEIGHTS},
        {**METADATA, "format": FORMAT, "weights": WEIGHTS, "sha256": "0"},
        {**METADATA, "format": FORMAT, "weights": WEIGHTS, "sha256": "0", "model": 3},
    ],
    ids=["other version", "no weights", "only weights", "other weights", "no name"],
)
def test_own_format_incomplete_or_of_another_version(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UsageError, match=str(tmp_path / "c.pt")):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "djsw-checkpoint-0"}, "format is 'djsw-checkpoint-0', expected 'djsw-check"),
        ({"model": {"name": "SMLP"}}, "model lacks arguments"),
        ({"dataset": {"name": None}}, "dataset.name is 'None', expected str"),
        ({"classes": ["4"]}, r"classes\[0\] is '4', expected int"),
        ({"epoch": "3"}, "epoch is '3', expected int"),
        ({"settings": []}, r"settings is '\[\]', expected an object"),
        ({"starting_weights": {"file": "a.pt"}}, "starting_weights lacks sha256"),
        (
            {"starting_weights": {"file": "a.pt", "sha256": "0", "kept": "fc1"}},
            "starting_weights.kept is 'fc1', expected a list",
        ),
        ({"sha256": None}, "sha256 is 'None', expected str"),
    ],
    ids=str,
)
def test_odd_fields_are_named(tmp_path, change, sentence):
    path = tmp_path / "c.pt"
    write_checkpoint(path, WEIGHTS, METADATA)
    torch.save(torch.load(path) | change, path)
    with pytest.raises(UsageError, match=f"^{path} is not a valid checkpoint: {sentence}"):
        load_checkpoint(path)


def test_weights_that_do_not_fit(tmp_path):
    torch.save(SMLP(hidden_size=5).state_dict(), tmp_path / "c.pt")
    with pytest.raises(UsageError, match=r"layer1\.bias \(5,\), the model has layer1\.bias \(77,"):
        require_fit(SMLP(), load_checkpoint(tmp_path / "c.pt"))


@pytest.mark.parametrize("form", [FORMAT, "bare"])
def test_no_changed_bit_goes_unnoticed(tmp_path, form):
    """Bare weights have the checksums of the ZIP alone."""
    path, weights = tmp_path / "c.pt", SMLP(hidden_size=3).state_dict()
    metadata = {**METADATA, "settings": {"lr": 0.001}}
    write_checkpoint(path, weights, metadata)
    if form == "bare":
        torch.save(weights, path)
    whole, expected = path.read_bytes(), load_checkpoint(path)
    bits = random.Random(0)
    for _ in range(200):
        content = bytearray(whole)
        content[bits.randrange(len(whole))] ^= 1 << bits.randrange(8)
        path.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except UsageError:
            continue
        assert found.metadata == expected.metadata  # a date or padding of the ZIP
        assert weights_sha256(found.weights) == weights_sha256(expected.weights)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "SMLP", "arguments": {"hidden_size": 78}}},
        {"classes": [4, 5, 6, 7, 9, 8]},
        {"epoch": 4},
        {"more": 1},
        {"weights": {**WEIGHTS, "layer1.bias": WEIGHTS["layer1.bias"] + 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_edited_content_is_refused(tmp_path, change):
    path = tmp_path / "c.pt"
    write_checkpoint(path, WEIGHTS, {**METADATA, "epoch": 3})
    torch.save(torch.load(path) | change, path)
    with pytest.raises(UsageError, match="is not a valid checkpoint: it was changed"):
        load_checkpoint(path)


CYCLE: dict[str, Any] = {}
CYCLE["a"] = CYCLE


@pytest.mark.parametrize(
    "value",
    [CYCLE, {"a": [torch.zeros(1)]}, {"a": {1}}, {"a": 10**99}, {1: 2}],
    ids=["cycle", "tensor", "set", "integer", "key"],
)
def test_metadata_that_are_not_plain(tmp_path, value):
    for name in ("settings", "metrics", "anything"):
        content = {**METADATA, name: value, "format": FORMAT, "weights": WEIGHTS, "sha256": "0"}
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(UsageError, match="is not a valid checkpoint: it"):
            load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("form", [FORMAT, "bare"])
def test_tensors_that_are_not_stored_are_not_made(tmp_path, form):
    """Forty bytes that claim gigabytes, by strides or by a thousand names."""
    large = torch.zeros(2**20)
    for weights in (
        {"a": torch.zeros(4, 1).expand(4, 10**9)},
        {str(number): large for number in range(1000)},
    ):
        own = {**METADATA, "format": form, "weights": weights, "sha256": "0"}
        torch.save(weights if form == "bare" else own, tmp_path / "c.pt")
        with pytest.raises(UsageError, match="no state dict|not all stored|bytes"):
            load_checkpoint(tmp_path / "c.pt")


def test_parameter_with_and_without_a_prefix(tmp_path):
    content = {**WEIGHTS, "module.layer1.bias": WEIGHTS["layer1.bias"]}
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UsageError, match="holds a parameter twice"):
        load_checkpoint(tmp_path / "c.pt")


def test_kinds_of_numbers(tmp_path):
    """Batch norm counts in integers; other precisions of the weights are converted."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights, path = model.state_dict(), tmp_path / "c.pt"
    for name, tensor, sentence in (
        ("0.weight", weights["0.weight"].double(), ""),
        ("0.weight", weights["0.weight"].half(), ""),
        (
            "0.weight",
            weights["0.weight"].int(),
            r"has 0.weight integer \(3, 2\), the model has 0.w",
        ),
        ("0.bias", weights["0.bias"] > 0, r"it has 0.bias integer \(3,\)"),
        (
            "1.num_batches_tracked",
            torch.tensor(1.5),
            r"the model has 1.num_batches_tracked integer",
        ),
    ):
        torch.save({**weights, name: tensor}, path)
        if sentence:
            with pytest.raises(UsageError, match=sentence):
                require_fit(model, load_checkpoint(path))
        else:
            require_fit(model, load_checkpoint(path))


def test_files_that_unpack_to_more_than_they_hold(tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as source:
        entries = [(entry.filename, source.read(entry)) for entry in source.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries:
            target.writestr(name, content)
    with pytest.raises(UsageError, match="was not loaded"):
        load_checkpoint(path)
    for size in (10**6, 10**10):
        with zipfile.ZipFile(path, "w") as target:
            bomb = (
                b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + size.to_bytes(8, "little") + b"\x85R."
            )
            target.writestr("c/data.pkl", bomb)
            target.writestr("c/version", "3")
        with pytest.raises(UsageError, match="was not loaded"):
            load_checkpoint(path)
        path.write_bytes(bomb)
        with pytest.raises(UsageError, match="was not loaded"):
            load_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_or_too_large(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(UsageError, match="it is no regular file"):
        load_checkpoint(tmp_path / "pipe.pt")
    with (tmp_path / "large.pt").open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(UsageError, match="it has more than 536,870,912 bytes"):
        load_checkpoint(tmp_path / "large.pt")


def test_hash_depends_on_name_type_shape_and_bytes_alone():
    a, b = torch.arange(6.0), torch.arange(6.0) + 1
    expected = weights_sha256({"a": a, "b": b})
    assert weights_sha256({"b": b.clone(), "a": a.repeat(2)[:6]}) == expected
    others = (
        {"a": b, "b": a},
        {"a": a, "c": b},
        {"a": a.view(2, 3), "b": b},
        {"a": a.view(torch.int32), "b": b},
        {"a": a},
    )
    assert len({expected, *map(weights_sha256, others)}) == 6
    assert len(weights_sha256({"scalar": torch.tensor(1.5)})) == 64


def test_description():
    assert describe(SMLP(hidden_layers=3)) == "SMLP 784-77-77-77-6"
