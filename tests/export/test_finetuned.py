"""What MINT and STAMP leave, pushed with ST model or adapters and pulled again, by huggingface_hub's own requests."""

import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.finetuning import mint_settings, stamp_settings, write_cohorts
from support.hub_client import load_adapted, load_merged, load_st, publish
from support.hub_server import TOKEN

from timm_mvhybrid import finetune
from timm_mvhybrid.export import ExportError, export
from timm_mvhybrid.finetune import FinetuneError
from timm_mvhybrid.finetune.runs import run_mint, run_stamp

pytest.importorskip("lightly")
pytest.importorskip("pyarrow")
REPO = "our-lab/fine-tuned"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The export of a run of one step."""
    root = tmp_path_factory.mktemp("run")
    config = mint_settings(root / "run", write_cohorts(root), num_steps=1, data__license="CC BY 4.0")
    run_mint(config, show_progress=False)
    export(config.output, None, root / "out")
    return root / "out"


def test_an_st_model_is_pushed_and_pulled_with_its_backbone(hub, folder, tmp_path):
    server, call = hub
    outcome = call(publish, folder, REPO, token=TOKEN)
    assert outcome.error == ""
    assert outcome.value["verified"]
    files = server.repositories[REPO].commits[outcome.value["commit"]]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "st_model.safetensors"]
    card = files["README.md"].decode()
    assert f'finetune.load("hf-hub:{REPO}")' in card
    assert "| license | CC BY 4.0 |" in card
    pulled = call(load_st, f"hf-hub:{REPO}", tmp_path / "cache")
    assert pulled.error == ""
    images = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    expected = finetune.load(folder).features(images)["st"][0].tolist()
    assert pulled.value == pytest.approx(expected, abs=1e-6)
    again = call(publish, folder, REPO, token=TOKEN)
    assert again.value["actions"] == ()


def test_a_damaged_st_model_is_not_published(hub, folder, tmp_path):
    _, call = hub
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    content = (broken / "st_model.safetensors").read_bytes()
    (broken / "st_model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    outcome = call(publish, broken, REPO, token=TOKEN)
    assert "st_model.safetensors: its sha256 is not the one" in outcome.error
    assert ExportError.__name__ in outcome.kinds


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """The export of a run of STAMP of two steps, and the weights that it began with."""
    pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("aligned")
    torch.manual_seed(7)
    base = timm.create_model("test_mvhybrid", img_size=64, num_classes=0)
    save_file({name: x.contiguous() for name, x in base.state_dict().items()}, root / "base.safetensors")
    manifest = write_cohorts(root)
    config = stamp_settings(root / "run", manifest, num_steps=2, model__weights=root / "base.safetensors")
    run_stamp(config, show_progress=False)
    export(config.output, None, root / "out")
    return root


def test_an_aligned_encoder_and_its_adapters_are_pushed_and_pulled(hub, aligned, tmp_path):
    server, call = hub
    repo = "our-lab/aligned"
    outcome = call(publish, aligned / "out", repo, token=TOKEN, revision="v1")
    assert outcome.error == ""
    assert outcome.value["verified"]
    files = server.repositories[repo].commits[outcome.value["commit"]]
    adapters = {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    assert set(files) == {"README.md", "config.json", "model.safetensors", *adapters}
    assert f'load_adapters(base, "hf-hub:{repo}")' in files["README.md"].decode()
    merged = call(load_merged, f"hf-hub:{repo}@v1", tmp_path / "cache")
    assert merged.error == ""
    for source in (f"hf-hub:{repo}", f"hf-hub:{repo}@v1"):
        adapted = call(load_adapted, source, tmp_path / "cache", aligned / "base.safetensors")
        assert adapted.error == ""
        assert adapted.value == pytest.approx(merged.value, abs=1e-5)
    # the base alone is something else, and no other base takes the adapters
    alone = call(load_adapted, None, tmp_path / "cache", aligned / "base.safetensors")
    assert alone.value != pytest.approx(merged.value, abs=1e-4)
    wrong = call(load_adapted, f"hf-hub:{repo}", tmp_path / "cache", None)
    assert FinetuneError.__name__ in wrong.kinds
    assert "base.json: the adapters belong to weights with sha256" in wrong.error
    no_st = call(load_st, f"hf-hub:{repo}", tmp_path / "cache")
    assert "st_model.safetensors" in no_st.error


def test_damaged_adapters_and_adapters_alone_are_not_published(hub, aligned, tmp_path):
    _, call = hub
    shutil.copytree(aligned / "out", tmp_path / "broken")
    file = tmp_path / "broken" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "adapter_model.safetensors: its sha256 is not the one" in call(publish, file.parent, REPO).error
    alone = call(publish, aligned / "run" / "adapters", REPO, token=TOKEN)
    assert f"{aligned / 'run' / 'adapters' / 'config.json'}: no such file" in alone.error
