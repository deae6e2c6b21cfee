"""One digest of tensors: of a file's, and of a model's that has no file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from timm_mvhybrid.embed.backbone import Backbone
from timm_mvhybrid.embed.embedding_cache import weights_digest
from timm_mvhybrid.runtime.digest import file_fingerprint, file_sha256
from timm_mvhybrid.runtime.tensor_digest import tensors_sha256

EXPORTED = Path(__file__).parents[1] / "golden" / "weights" / "exported" / "model.safetensors"


def test_an_earlier_export_states_the_digest_that_is_computed_now():
    with safe_open(EXPORTED, "pt") as file:
        stated = file.metadata()["tensors_sha256"]
    assert tensors_sha256(load_file(EXPORTED)) == stated


def test_a_model_without_a_file_has_the_digest_of_its_tensors(tmp_path):
    model = torch.nn.Linear(3, 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = Backbone(model=model, name="linear", weights="random")
    assert weights_digest(backbone) == tensors_sha256(load_file(tmp_path / "model.safetensors"))


def test_the_order_of_names_does_not_count_and_all_else_does():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    found = tensors_sha256(tensors)
    assert tensors_sha256(dict(reversed(tensors.items()))) == found
    changes = [
        {"c": torch.zeros(2, 3), "b": torch.ones(1)},
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**tensors, "a": -torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3)},
    ]
    assert len({found, *map(tensors_sha256, changes)}) == 1 + len(changes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool])
def test_views_count_by_their_values(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    assert tensors_sha256({"a": tensor.T}) == tensors_sha256({"a": tensor.T.contiguous()})
    assert tensors_sha256({"a": tensor[:, 0]}) == tensors_sha256({"a": tensor[:, 0].clone()})


def test_a_fingerprint_of_a_large_file_tells_size_and_samples(tmp_path):
    data = np.random.default_rng(0).bytes(3 << 20)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data)
    (tmp_path / "c").write_bytes(data[:-1])
    a, b, c = (file_fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")
