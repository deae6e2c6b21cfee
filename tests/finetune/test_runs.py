"""Runs of MINT and STAMP on small cohorts: what they measure, how they go on, what they leave, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.finetuning import NUM_STEPS, mint_settings, stamp_settings, write_cohorts
from support.pretraining import change, equal, lines, stop_after

from timm_mvhybrid import finetune
from timm_mvhybrid.export import ExportError, export, verify
from timm_mvhybrid.finetune import FinetuneError, load_adapters
from timm_mvhybrid.finetune.report import report_run, result_of_run
from timm_mvhybrid.finetune.runs import run_mint, run_stamp
from timm_mvhybrid.runtime.errors import DataError, EvaluationError, PretrainError

pytest.importorskip("lightly")
pytest.importorskip("pyarrow")
METHODS = ["mint", "stamp"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_cohorts(tmp_path_factory.mktemp("cohorts"))


def settings(method, output, manifest, **changes):
    if method == "stamp":
        pytest.importorskip("peft")
    return {"mint": mint_settings, "stamp": stamp_settings}[method](output, manifest, **changes)


def train(config):
    run = run_stamp if hasattr(config, "stamp") else run_mint
    return run(config, show_progress=False)


@pytest.fixture(scope="module", params=METHODS)
def finished(request, manifest, tmp_path_factory):
    """An uninterrupted run."""
    config = settings(request.param, tmp_path_factory.mktemp(request.param) / "run", manifest)
    assert train(config).step == NUM_STEPS
    return request.param, config


def probes(folder):
    return [line for line in lines(folder) if "probe/expression_class" in line]


def test_the_encoder_is_measured_at_the_start_every_so_many_steps_and_at_the_end(finished):
    method, config = finished
    measured = probes(config.output)
    assert [line["step"] for line in measured] == [0, 2, 4]
    start, end = measured[0], measured[-1]
    for name in ("class_cosine", "class_cka", "patch_cosine", "patch_cka"):
        assert start[f"probe/{name}"] == pytest.approx(1, abs=1e-6)
        assert 0 < end[f"probe/{name}"] < 1 - 1e-9
    # equal features have equal scores: nothing of the token or the adapters shows before the first step
    assert start["probe/expression_class"] == start["probe/expression_frozen"]
    assert end["probe/expression_frozen"] == start["probe/expression_frozen"]
    assert {"probe/spots/expression_class", "probe/cells/expression_frozen"} <= end.keys()
    if method == "mint":
        assert {"probe/expression_st", "probe/expression_class_st", "probe/expression_head"} <= end.keys()
    else:
        assert {"probe/pathway_pearson", "probe/retrieval_at_1", "probe/retrieval_at_5"} <= end.keys()
        assert end["probe/retrieval_at_1"] <= end["probe/retrieval_at_5"]
        (step,) = [line for line in lines(config.output) if line["step"] == 4 and "loss/contrast" in line]
        assert step["loss/ln_batch"] == pytest.approx(np.log(4))
    results = {
        entry["metric"]: entry for entry in json.loads((config.output / "evaluations.json").read_text())
    }
    assert results["expression_class"]["value"] == end["probe/expression_class"]
    assert "18 held-out patches, study-disjoint" in results["expression_class"]["dataset"]


def test_a_run_that_stopped_goes_on_to_the_same_weights_bit_for_bit(finished, manifest, tmp_path):
    method, before = finished
    config = settings(method, tmp_path / "run", manifest)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        stopped = train(config)
    assert (stopped.step, stopped.stopped_by, stopped.weights) == (3, "SIGTERM", None)
    assert not (config.output / "encoder.safetensors").exists()
    with pytest.raises(ExportError, match="not finished"):
        export(config.output, None, tmp_path / "out")
    assert train(config).step == NUM_STEPS
    for file in sorted(before.output.rglob("*.safetensors")):
        other = config.output / file.relative_to(before.output)
        assert equal(load_file(file), load_file(other)), file.name
    values = [
        [{k: v for k, v in line.items() if k.startswith(("loss/", "probe/"))} for line in lines(folder)]
        for folder in (before.output, config.output)
    ]
    assert values[0] == values[1]


def test_measuring_leaves_no_trace_in_what_is_learned(finished, manifest, tmp_path):
    method, before = finished
    config = settings(method, tmp_path / "run", manifest, **{f"{method}__validate_every_steps": 100})
    train(config)
    names = ("encoder.safetensors",)
    assert all(equal(load_file(before.output / n), load_file(config.output / n)) for n in names)


def test_an_export_of_mint_has_class_and_patch_features_exactly_as_trained_and_the_st_model(
    manifest, tmp_path
):
    config = mint_settings(tmp_path / "run", manifest)
    train(config)
    summary = export(config.output, None, tmp_path / "out")
    assert summary.model == "test_mvhybrid"
    verify(tmp_path / "out")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        backbone = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        tokens = backbone.forward_features(images)
        of_run, of_export = (finetune.load(folder) for folder in (config.output, tmp_path / "out"))
        for model in (of_run, of_export):
            features = model.features(images)
            assert torch.equal(features["class"], tokens[:, 0])
            assert torch.equal(features["patch"], tokens[:, backbone.num_prefix_tokens :])
        assert torch.equal(of_run.features(images)["st"], of_export.features(images)["st"])
        found = of_export.predict(images)
    assert {name: sorted(kinds) for name, kinds in found.items()} == {
        "spots": ["spot"],
        "cells": ["cells", "spot"],
    }
    assert found["cells"]["cells"].shape == (2, 4, 12)
    panel = of_export.panels["spots"]
    standardised = of_export.spot_heads[0](features["st"])
    torch.testing.assert_close(
        found["spots"]["spot"], standardised * torch.tensor(panel.std) + torch.tensor(panel.mean)
    )
    assert "counts per million" in panel.unit
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Molecular fine-tuning: MINT" in card
    assert "| cells | transcripts | 12 | 12 | log1p counts per 1,000 µm² | 6 |" in card
    assert "finetune.load(" in card
    assert "S1" not in card


@pytest.mark.parametrize("damage", ["missing", "bytes", "another backbone", "heads"])
def test_an_st_model_that_is_not_what_was_exported_is_refused(manifest, tmp_path, damage):
    config = mint_settings(tmp_path / "run", manifest, num_steps=1)
    train(config)
    out = tmp_path / "out"
    export(config.output, None, out)
    file = out / "st_model.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "bytes":
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        facts = json.loads(metadata["timm_mvhybrid_st"])
        if damage == "heads":
            tensors["spot_heads.0.weight"] = tensors["spot_heads.0.weight"][:3]
        else:
            facts["backbone_sha256"] = "0" * 64
        # as one would that has no record of the file
        stated = json.loads((out / "config.json").read_text())
        del stated["timm_mvhybrid"]["files"]
        (out / "config.json").write_text(json.dumps(stated))
        save_file(tensors, file, metadata={"format": "pt", "timm_mvhybrid_st": json.dumps(facts)})
    with pytest.raises((FinetuneError, RuntimeError), match=r"st_model\.safetensors"):
        finetune.load(out)
    if damage in ("missing", "bytes"):
        with pytest.raises(ExportError, match=r"st_model\.safetensors"):
            verify(out)


def test_stamp_leaves_the_merged_encoder_and_adapters_that_know_their_base(manifest, tmp_path):
    pytest.importorskip("peft")
    config = stamp_settings(tmp_path / "run", manifest)
    train(config)
    out = tmp_path / "out"
    export(config.output, None, out)
    verify(out)
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json"} <= {
        f.name for f in out.iterdir()
    }
    merged = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.manual_seed(config.seed)
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(FinetuneError, match="sha256"):
        load_adapters(timm.create_model("test_mvhybrid", img_size=64), out, model_args={"img_size": 64})
    assert merged.forward_features(images).isfinite().all()
    assert "## Molecular fine-tuning: STAMP" in (out / "README.md").read_text()


def test_weights_under_an_st_token_are_not_rounded_and_may_be_made_for_another_size(manifest, tmp_path):
    config = mint_settings(tmp_path / "run", manifest, num_steps=1)
    train(config)
    with pytest.raises(ExportError, match="ST token was trained on other weights"):
        export(config.output, None, tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out").exists()
    export(config.output, None, tmp_path / "out", model_args={"img_size": 128})
    model = finetune.load(tmp_path / "out")
    assert model.features(torch.zeros(1, 3, 128, 128))["st"].isfinite().all()


def test_the_report_has_a_row_for_each_kind_of_features_and_curves(finished):
    method, config = finished
    page = report_run(config.output, overwrite=True)
    text = page.read_text()
    result = result_of_run(config.output)
    labels = {one.model for one in result.summaries}
    assert {"frozen encoder", "class token"} <= labels
    assert ("class and ST token" in labels) == (method == "mint")
    frozen = result.summary("frozen encoder", "all", "after")
    assert frozen.mean == probes(config.output)[-1]["probe/expression_frozen"]
    assert result.summary("frozen encoder", "all", "gain").mean == 0
    assert {"Expression over the run", "Drift from the frozen encoder", "Losses"} <= {
        part.split("</h2>")[0] for part in text.split("<h2>")
    }
    assert ("ln(batch)" in text) == (method == "stamp")
    assert "Random weights, never trained: frozen" in text
    assert str(config.output.parent) not in text
    with pytest.raises(EvaluationError, match="exists already"):
        report_run(config.output)


def test_a_folder_that_is_no_such_run_has_no_report(tmp_path):
    with pytest.raises(EvaluationError, match="is not the folder of a run of MINT or STAMP"):
        report_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data__sources": ("nowhere",)}, DataError, "nowhere: no such folder"),
        ({"data__hold_out": ("C",)}, DataError, r"`hold_out` names the study 'C'"),
        ({"data__token_pool": 1, "crops__global_size_px": 48}, FinetuneError, r"48.*do not"),
        ({"model__name": "resnet18"}, PretrainError, "resnet18"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(manifest, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(mint_settings(tmp_path / "run", manifest, **changes))
    assert not (tmp_path / "run").exists()


def test_samples_of_unknown_patients_are_not_validated_on(manifest, tmp_path):
    folder = shutil.copytree(manifest.parent, tmp_path / "cohorts")
    (folder / "spots" / "studies.csv").unlink()
    config = mint_settings(tmp_path / "run", folder / "cohorts.json", data__hold_out=())
    with pytest.raises(DataError, match=r"studies\.csv: missing.*`split='none'`"):
        train(config)
    result = train(change(config, data__split="none", num_steps=1))
    assert result.weights is not None
    assert not probes(config.output)
    assert "Nothing was held out" in " ".join(result_of_run(config.output).notes)


def test_stamp_needs_gene_sets(manifest, tmp_path):
    with pytest.raises(PretrainError, match=r"`pathways` is not given"):
        train(stamp_settings(tmp_path / "run", manifest, data__pathways=None))
