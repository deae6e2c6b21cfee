"""The organisation is named in one place, and timm sees the change."""

import pytest
import timm

from timm_mvhybrid.hub import organization, set_organization
from timm_mvhybrid.models import MODEL_NAMES, TEST_MODEL_NAMES


@pytest.fixture(autouse=True)
def default():
    yield
    set_organization(None)


def hub_ids(name):
    tag = timm.get_pretrained_cfg(name).tag
    model = timm.create_model(name, device="meta")
    return {
        timm.get_pretrained_cfg(name).hf_hub_id,
        timm.get_pretrained_cfg(f"{name}.{tag}").hf_hub_id,
        timm.models.get_arch_pretrained_cfgs(name)[f"{name}.{tag}"].hf_hub_id,
        model.pretrained_cfg["hf_hub_id"],
    }


@pytest.mark.parametrize("name", [*MODEL_NAMES, *TEST_MODEL_NAMES])
def test_every_model_has_a_tag_and_a_repository(name):
    config = timm.get_pretrained_cfg(name)
    assert config.tag == ("random" if name.startswith("test_") else "dinov2_he")
    assert hub_ids(name) == {f"timm-mvhybrid/{name}.{config.tag}"}
    assert f"{name}.{config.tag}" in timm.list_pretrained()
    assert config.num_classes == 0
    assert config.license == "apache-2.0"
    assert config.paper_ids == "arXiv:2508.00383"
    assert config.origin_url == "https://arxiv.org/abs/2508.00383"


@pytest.mark.parametrize("name", ["mvhybrid_small_patch16_256", "test_vit12"])
def test_another_organisation_takes_effect_at_once_and_again(name):
    for chosen in ("our-lab", "their.lab", None):
        set_organization(chosen)
        expected = chosen or "timm-mvhybrid"
        assert organization() == expected
        assert {hub_id.split("/")[0] for hub_id in hub_ids(name)} == {expected}


def test_the_environment_comes_behind_what_was_set(monkeypatch):
    monkeypatch.setenv("TIMM_MVHYBRID_ORGANIZATION", "from-environment")
    model = timm.create_model("test_vit12", device="meta")
    assert model.pretrained_cfg["hf_hub_id"] == "from-environment/test_vit12.random"
    set_organization("from-call")
    assert hub_ids("test_vit12") == {"from-call/test_vit12.random"}


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a b", "https://host"])
def test_what_cannot_be_an_organisation(name):
    with pytest.raises(ValueError, match="cannot be an organisation"):
        set_organization(name)
    assert organization() == "timm-mvhybrid"


def test_other_models_of_timm_keep_their_repository():
    before = timm.get_pretrained_cfg("vit_tiny_patch16_224").hf_hub_id
    set_organization("our-lab")
    assert timm.get_pretrained_cfg("vit_tiny_patch16_224").hf_hub_id == before
