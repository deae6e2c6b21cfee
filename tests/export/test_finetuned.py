"""An encoder that MINT fine-tuned, pushed with its ST model and pulled again, by huggingface_hub's own requests."""

import pytest
import torch
from support.finetuning import mint_settings, write_cohorts
from support.hub_client import load_st, publish
from support.hub_server import TOKEN

from timm_mvhybrid import finetune
from timm_mvhybrid.export import ExportError, export
from timm_mvhybrid.finetune.runs import run_mint

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
