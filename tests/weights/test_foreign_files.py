"""Objects and unusual tensors in a file: the right numbers, or one sentence that names them; nothing is ever run."""

import argparse
import collections
import pathlib
import pickle
import re

import numpy
import pytest
import torch
from safetensors.torch import save_file
from support.exports import perturbed

from timm_mvhybrid.export.training_checkpoint import convert, read_training_checkpoint
from timm_mvhybrid.models import CheckpointError, checkpoint_filter_fn, load_weights
from timm_mvhybrid.runtime.ranks import close_process_group

MODEL = "test_mvhybrid"
SOURCE = perturbed(MODEL, 1)
OWN = SOURCE.state_dict()


class Settings:
    """A class of the user's own."""


class Payload:
    """What a malicious pickle would be."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


WRITERS = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "zip, protocol 4": lambda content, path: torch.save(content, path, pickle_protocol=4),
    "pickle, protocol 2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "pickle, protocol 4": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=4)),
}
OBJECTS = {
    "a namespace": (argparse.Namespace(lr=0.1), ["argparse.Namespace"]),
    "a path": (pathlib.PurePosixPath("a"), [f"{pathlib.PurePosixPath.__module__}.PurePosixPath"]),
    "a number of NumPy": (numpy.float64(0.5), ["multiarray.scalar"]),
    "an array": (numpy.ones(3), ["multiarray._reconstruct"]),
    "a class of one's own": (Settings(), [f"{__name__}.Settings"]),
    "several": (
        [argparse.Namespace(), Settings(), collections.deque()],
        ["argparse.Namespace", "collections.deque", f"{__name__}.Settings"],
    ),
    "a model": (
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU()),
        ["torch.nn.modules.linear.Linear"],
    ),
}


def ways(path):
    model = perturbed(MODEL, 9)
    yield lambda: load_weights(model, path)
    yield lambda: convert(read_training_checkpoint(path), model)


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("writer", WRITERS)
def test_objects_are_named(tmp_path, kind, writer):
    path = tmp_path / "last.ckpt"
    found, names = OBJECTS[kind]
    WRITERS[writer]({"state_dict": dict(OWN), "hyper_parameters": found}, path)
    for way in ways(path):
        with pytest.raises(CheckpointError) as caught:
            way()
        text = str(caught.value)
        assert re.fullmatch(
            rf"{path}: holds more than tensors: .*\. Nothing of it was run; where you trust it, open it .* "
            r"safetensors\.torch\.save_file",
            text,
        )
        assert all(name in text for name in names), text
        # tensors themselves are not among what is wrong with the file
        assert not re.search(r"torch\._utils|Storage|OrderedDict|torch\.float32", text)
        assert text.isprintable()


def test_many_objects_are_counted(tmp_path):
    torch.save(perturbed(MODEL), tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors: (?:[\w.]+, ){5}[\w.]+ and \d+ more\. Nothing"
    ):
        load_weights(perturbed(MODEL), tmp_path / "model.pth")


@pytest.mark.parametrize("writer", WRITERS)
def test_naming_runs_nothing(tmp_path, writer):
    WRITERS[writer]({"a": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    for way in ways(tmp_path / "evil.pth"):
        with pytest.raises(CheckpointError, match="Nothing of it was run"):
            way()
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_has_a_reason_without_escape_codes(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": "b"}, protocol=4))
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors, or is damaged \(.+\)\. Nothing"
    ) as caught:
        load_weights(perturbed(MODEL), tmp_path / "a.pth")
    assert str(caught.value).isprintable()
    assert "[1m" not in str(caught.value)


def test_names_that_would_steer_a_terminal(tmp_path):
    save_file({**OWN, "\x1b[2J\x1b]0;title\x07": torch.zeros(2)}, tmp_path / "a.safetensors")
    for way in ways(tmp_path / "a.safetensors"):
        with pytest.raises(
            CheckpointError, match=re.escape(r"1 unexpected (\x1b[2J\x1b]0;title\x07)")
        ) as caught:
            way()
        assert str(caught.value).isprintable()


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torchscript_is_recognised(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(
        CheckpointError, match="is a TorchScript archive, which holds code; nothing of it was run"
    ):
        load_weights(perturbed(MODEL), tmp_path / "a.pt")


def relative_error(state):
    """Largest error of any tensor in units of its own largest number."""
    return max(float((state[name] - OWN[name]).abs().max() / OWN[name].abs().max()) for name in OWN)


# the error of one rounding to the type's mantissa, at the largest number; whole steps of the codes for the quantised ones
KINDS = {
    "float64": (lambda value: value.double(), 0),
    "bfloat16": (lambda value: value.bfloat16(), 2**-8),
    "float16": (lambda value: value.half(), 2**-11),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), 2**-4),
    "sparse": (lambda value: value.to_sparse(), 0),
    "quantised": (
        lambda value: torch.quantize_per_tensor(value, float(value.abs().max()) / 127, 0, torch.qint8),
        1 / 127,
    ),
    "shared": (lambda value: torch.stack([value, value])[1], 0),
    "transposed in memory": (lambda value: value.transpose(0, -1).contiguous().transpose(0, -1), 0),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_unusual_tensors_keep_their_numbers(tmp_path, kind):
    change, bound = KINDS[kind]
    torch.save({name: change(value) for name, value in OWN.items()}, tmp_path / "a.pth")
    model = perturbed(MODEL, 9)
    load_weights(model, tmp_path / "a.pth")
    state = model.state_dict()
    assert relative_error(state) <= bound
    exported = convert(read_training_checkpoint(tmp_path / "a.pth"), model)
    assert all(torch.equal(exported[name].to(value.dtype), value) for name, value in state.items())


def test_arrays_in_memory_count_as_tensors():
    state = checkpoint_filter_fn({name: value.numpy() for name, value in OWN.items()}, perturbed(MODEL, 9))
    assert relative_error(state) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to("meta"), "is on the meta device: a shape without numbers"),
        (
            lambda value: value.to(torch.int8),
            r"63 of its tensors are not of floating-point numbers \(cls_token int8",
        ),
        (lambda value: value.to(torch.complex64), r"are not of floating-point numbers \(cls_token complex64"),
    ],
)
def test_tensors_without_the_numbers_are_refused(tmp_path, change, message):
    torch.save({name: change(value) for name, value in OWN.items()}, tmp_path / "a.pth")
    for way in ways(tmp_path / "a.pth"):
        with pytest.raises(CheckpointError, match=message):
            way()


def write_distributed(rank, world_size, folder):
    """One process of a save of distributed tensors by torch.save."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world_size)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world_size,))
    for name, placement in (("sharded", Shard(0)), ("replicated", Replicate())):
        weights = {key: distribute_tensor(value, mesh, [placement]) for key, value in OWN.items()}
        torch.save(weights, folder / f"{name}_{rank}.pt")
    close_process_group()


def test_distributed_tensors_of_one_process_are_whole(tmp_path):
    write_distributed(0, 1, tmp_path)
    for name in ("replicated_0.pt", "sharded_0.pt"):
        model = perturbed(MODEL, 9)
        load_weights(model, tmp_path / name)
        assert relative_error(model.state_dict()) == 0


@pytest.mark.distributed
def test_distributed_tensors_of_two_processes_are_whole_or_refused(tmp_path):
    torch.multiprocessing.spawn(write_distributed, (2, tmp_path), nprocs=2, join=True)
    model = perturbed(MODEL, 9)
    load_weights(model, tmp_path / "replicated_0.pt")
    assert relative_error(model.state_dict()) == 0
    for way in ways(tmp_path / "sharded_0.pt"):
        with pytest.raises(
            CheckpointError, match="is one process's part of a sharded tensor; save the whole weights"
        ):
            way()


def test_a_header_of_any_length_is_that_of_a_safetensors_file(tmp_path):
    """Its length stands first, and may look like the start of a pickle: 0x80, then the protocol."""
    path = tmp_path / "model.safetensors"
    tensors = {name: value.contiguous() for name, value in OWN.items()}
    save_file(tensors, path, {"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(tensors, path, {"note": "x" * ((0x0280 - length) % 2**16)})
    assert path.read_bytes()[:2] == b"\x80\x02"
    load_weights(perturbed(MODEL, 9), path)
