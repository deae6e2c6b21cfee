"""Checkpoints of a training, sharded or not, give the branch that was asked for, and nothing of them is run."""

import functools
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from support.exports import perturbed
from support.forked import spawn
from support.training_runs import MODEL, STUDENT_SEED, TEACHER_SEED, training_state, write_sharded

from timm_mvhybrid.export.training_checkpoint import convert, read_training_checkpoint
from timm_mvhybrid.hub import ExportError
from timm_mvhybrid.models import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*single process")


def flat(values, prefix=""):
    out = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out.update(flat(value, f"{prefix}{name}."))
        elif isinstance(value, torch.Tensor):
            out[f"{prefix}{name}"] = value
    return out


def write_flat(state, path):
    save_file({name: value for name, value in flat(state).items() if "optimizer" not in name}, path)


WRITERS = {
    "step_20": lambda state, path: dcp.save(state, checkpoint_id=path),
    "step_20.pt": lambda state, path: torch.save(state, path),
    "step_20.pth": lambda state, path: torch.save(
        {"model": flat(state), "optimizer": state["optimizer"]}, path
    ),
    "step_20.safetensors": write_flat,
}


def assert_is(checkpoint, seed):
    model = perturbed(MODEL, 0)
    expected = perturbed(MODEL, seed).state_dict()
    state = convert(checkpoint, model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_teacher_and_student(tmp_path, name):
    path = tmp_path / "checkpoints" / name
    path.parent.mkdir()
    WRITERS[name](training_state(), path)
    teacher = read_training_checkpoint(path)
    assert (teacher.branch, teacher.step, teacher.run) == ("teacher", 20, tmp_path)
    assert_is(teacher, TEACHER_SEED)
    assert_is(read_training_checkpoint(path, "student"), STUDENT_SEED)
    # a run is named by its folder as well
    assert read_training_checkpoint(tmp_path).path == path


@pytest.mark.distributed
def test_shards_of_two_processes_are_joined_by_one(tmp_path):
    folder = tmp_path / "checkpoints" / "step_7"
    spawn(write_sharded, (2, str(folder), str(tmp_path / "rendezvous")))
    assert len(list(folder.glob("*.distcp"))) == 2
    assert_is(read_training_checkpoint(folder), TEACHER_SEED)
    assert_is(read_training_checkpoint(tmp_path, "student"), STUDENT_SEED)
    assert not torch.distributed.is_initialized()


def test_only_the_wanted_tensors_are_read(tmp_path, monkeypatch):
    dcp.save(training_state(), checkpoint_id=tmp_path / "step_20")
    read = []
    load = dcp.load
    monkeypatch.setattr(
        "timm_mvhybrid.export.training_checkpoint.dcp.load",
        lambda state, **options: (read.extend(state), load(state, **options)),
    )
    read_training_checkpoint(tmp_path / "step_20")
    assert read
    assert all(name.startswith("teacher.backbone.") for name in read)


def test_the_newest_checkpoint_of_a_run_is_taken(tmp_path):
    for step in (3, 20, 100):
        path = tmp_path / "checkpoints" / f"step_{step}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_flat(training_state(), path)
    # a save that was killed has no index
    (tmp_path / "checkpoints" / "step_200").mkdir()
    assert read_training_checkpoint(tmp_path).step == 100


@pytest.mark.parametrize("branch", ["teacher", "student"])
def test_an_absent_branch_is_not_replaced_by_the_other(tmp_path, branch):
    other = {"teacher": "student", "student": "teacher"}[branch]
    state = {other: training_state()[other]}
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(
        ExportError, match=f"has no {branch}, only a {other}; take it with `branch='{other}'`"
    ):
        read_training_checkpoint(tmp_path / "half.pt", branch)


def test_weights_without_branches_are_taken_as_they_are(tmp_path):
    save_file(perturbed(MODEL, 5).state_dict(), tmp_path / "weights.safetensors")
    checkpoint = read_training_checkpoint(tmp_path / "weights.safetensors")
    assert (checkpoint.branch, checkpoint.run, checkpoint.step) == (None, None, None)
    assert_is(checkpoint, 5)


def test_what_lies_beside_the_weights_is_left_there(tmp_path):
    beside = {
        "optimizer": {"exp_avg": torch.full((2,), float("nan"))},
        "dino_head": {"weight": torch.zeros(2)},
    }
    torch.save({"model": perturbed(MODEL, 5).state_dict(), **beside}, tmp_path / "all.pt")
    assert_is(read_training_checkpoint(tmp_path / "all.pt"), 5)


def test_an_average_of_weights_counts_as_teacher(tmp_path):
    state = {
        "state_dict": perturbed(MODEL, 5).state_dict(),
        "state_dict_ema": perturbed(MODEL, 6).state_dict(),
    }
    torch.save(state, tmp_path / "timm.pth.tar")
    assert_is(read_training_checkpoint(tmp_path / "timm.pth.tar"), 6)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "functools.partial"])
def test_an_index_that_asks_for_anything_else_is_refused(tmp_path, name):
    dcp.save(training_state(), checkpoint_id=tmp_path / "step_1")
    module, _, function = name.rpartition(".")
    call = f"c{module}\n{function}\n(S'touch {tmp_path / 'ran'}'\ntR.".encode()
    (tmp_path / "step_1" / ".metadata").write_bytes(call)
    with pytest.raises(ExportError, match=f"unsafe one .it asks for {name}.*Nothing of it was run"):
        read_training_checkpoint(tmp_path / "step_1")
    assert not (tmp_path / "ran").exists()


def test_an_index_with_a_payload_beside_its_entries_is_refused(tmp_path):
    dcp.save(training_state(), checkpoint_id=tmp_path / "step_1")
    index = tmp_path / "step_1" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    metadata.planner_data["more"] = Payload(tmp_path / "ran")
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ExportError, match="Nothing of it was run"):
        read_training_checkpoint(tmp_path / "step_1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "__0_0.distcp").unlink(), "its shards cannot be read"),
        (lambda folder: (folder / "__0_0.distcp").write_bytes(b"x" * 100), "its shards cannot be read"),
        (lambda folder: (folder / ".metadata").write_bytes(b""), "not a readable index"),
        (lambda folder: (folder / ".metadata").write_bytes(pickle.dumps({"a": 1})), "not the index"),
        (lambda folder: (folder / ".metadata").unlink(), "neither a run"),
    ],
)
def test_damaged_sharded_checkpoints(tmp_path, spoil, message):
    folder = tmp_path / "step_1"
    dcp.save(training_state(), checkpoint_id=folder)
    spoil(folder)
    with pytest.raises(ExportError, match=message) as caught:
        read_training_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("save", [dcp.save, None])
def test_weights_that_are_not_finite_are_refused(tmp_path, save):
    state = training_state()
    state["teacher"]["backbone"]["norm.weight"][0] = float("nan")
    path = tmp_path / ("step_1" if save else "step_1.pt")
    functools.partial(dcp.save, checkpoint_id=path)(state) if save else torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"backbone\.norm\.weight.* NaN or Inf"):
        read_training_checkpoint(path)


def test_a_pickle_in_the_place_of_a_file(tmp_path):
    (tmp_path / "step_1.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    with pytest.raises(CheckpointError, match="Nothing of it was run"):
        read_training_checkpoint(tmp_path / "step_1.pt")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ExportError, match="no such checkpoint, neither a file nor a folder"):
        read_training_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="neither a run"):
        read_training_checkpoint(tmp_path)
