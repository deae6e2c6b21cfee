import hashlib

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.exports import exported

from timm_mvhybrid.embed.backbone import _pretrained_file
from timm_mvhybrid.evaluate import EvaluationError, describe_models, load_backbone, models_table
from timm_mvhybrid.models import (
    ALL_MODEL_NAMES,
    MODEL_NAMES,
    TINY_MODEL_NAMES,
    CheckpointError,
    NotPublishedError,
)
from timm_mvhybrid.runtime.errors import ParameterError


def test_random_weights_leave_the_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    backbone = load_backbone("test_mvhybrid", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert (backbone.weights, backbone.weights_sha256) == ("random", "random")
    assert not backbone.model.training


def test_unknown_model_gets_suggestions():
    with pytest.raises(EvaluationError, match=r"unknown model 'test_mvhybird'; did you mean .*test_mvhybrid"):
        load_backbone("test_mvhybird")
    with pytest.raises(EvaluationError, match=r"unknown model 'qqqq'; 'timm-mvhybrid models' lists ours"):
        load_backbone("qqqq")


def test_tags_are_part_of_known_names():
    with pytest.raises(EvaluationError, match="nonsense"):
        load_backbone("test_vit.nonsense")


def test_no_pretrained_weights(monkeypatch):
    def nothing(*_, **__):
        raise NotPublishedError("nothing is published there")

    monkeypatch.setattr("timm_mvhybrid.models.pretrained.download", nothing)
    with pytest.raises(
        EvaluationError, match=r"no pretrained weights of test_mvhybrid could be loaded: .*`checkpoint=FILE`"
    ):
        load_backbone("test_mvhybrid", pretrained=True)


def test_exported_folders_are_known_by_their_sha256(tmp_path):
    folder, _ = exported(tmp_path)
    backbone = load_backbone(f"local-dir:{folder}", pretrained=True)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (backbone.weights, backbone.weights_sha256) == ("pretrained", digest)


def test_both_kinds_of_weights(tmp_path):
    with pytest.raises(ParameterError, match="`pretrained` and `checkpoint` exclude each other"):
        load_backbone("test_mvhybrid", pretrained=True, checkpoint=tmp_path / "x")


def test_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_backbone("test_mvhybrid", checkpoint=tmp_path / "nowhere.safetensors")


def test_pretrained_file_of_a_configuration(tmp_path, monkeypatch):
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    create = timm.create_model

    def with_file(name, pretrained, **options):
        return create(name, pretrained_cfg_overlay={"file": str(tmp_path / "own.safetensors")}, **options)

    monkeypatch.setattr(timm, "create_model", with_file)
    backbone = load_backbone("test_vit", pretrained=True)
    assert backbone.weights == "pretrained"
    digest = hashlib.sha256((tmp_path / "own.safetensors").read_bytes()).hexdigest()
    assert backbone.weights_sha256 == digest


def test_pretrained_file_in_the_caches(tmp_path, monkeypatch):
    cached = {
        ("timm/x", "model.safetensors", None): "/cache/model.safetensors",
        ("timm/x", "model.safetensors", "v1"): "/cache/v1/model.safetensors",
    }
    monkeypatch.setattr(
        "timm_mvhybrid.embed.backbone.try_to_load_from_cache",
        lambda repo, name, revision: cached.get((repo, name, revision)),
    )
    assert str(_pretrained_file({"hf_hub_id": "timm/x"})) == "/cache/model.safetensors"
    assert str(_pretrained_file({"hf_hub_id": "timm/x@v1"})) == "/cache/v1/model.safetensors"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert _pretrained_file({"hf_hub_id": "timm/y", "url": "https://host/y.pth"}) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "y.pth").write_bytes(b"")
    assert _pretrained_file({"url": "https://host/y.pth"}) == tmp_path / "checkpoints" / "y.pth"
    assert _pretrained_file({}) is None


def test_descriptions():
    rows = {row.name: row for row in describe_models()}
    assert tuple(rows) == MODEL_NAMES + TINY_MODEL_NAMES
    row = rows["mvhybrid_small_patch16_256"]
    assert row.layout == "12 × MambaVision + EinFFT, 12 × attention + MLP"
    assert row.input_size_px == (256, 256)
    assert row.embedding_dim == 384
    assert row.weights == "none published"
    everything = describe_models(include_test_models=True)
    assert {row.name for row in everything} == set(ALL_MODEL_NAMES)
    smallest = min(everything, key=lambda row: row.num_parameters)
    built = timm.create_model(smallest.name, num_classes=0)
    assert smallest.num_parameters == sum(parameter.numel() for parameter in built.parameters())


def test_table_has_a_line_per_model():
    rows = describe_models()
    table = models_table(rows)
    assert table.row_count == len(rows)
    assert list(table.columns[0].cells) == [*MODEL_NAMES, *TINY_MODEL_NAMES]
