import pytest
import timm
import torch

from timm_mvhybrid.evaluate import EvaluationError
from timm_mvhybrid.evaluate.model_input import choose_device, choose_input_size


@pytest.mark.parametrize(
    ("name", "patch_size_px", "input_size", "expected"),
    [
        ("test_mvhybrid", 256, "auto", 256),
        ("test_mvhybrid", 224, "auto", 224),
        ("test_mvhybrid", 250, "auto", 128),
        ("test_mvhybrid", None, "auto", 128),
        ("test_mvhybrid", 256, 64, 64),
        ("vit_tiny_patch16_224", 256, "auto", 224),
        ("vit_tiny_patch16_224", 224, "auto", 224),
        ("vit_tiny_patch16_224", 256, 224, 224),
        ("test_resnet", 250, "auto", 250),
        ("maxvit_rmlp_pico_rw_256", 224, "auto", 256),
    ],
)
def test_input_size(name, patch_size_px, input_size, expected):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert choose_input_size(model, patch_size_px, input_size) == (expected, expected)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 256), ("test_mvhybrid", 250), ("test_mvhybrid", 0)]
)
def test_sizes_a_model_does_not_take(name, size):
    model = timm.create_model(name, num_classes=0)
    with pytest.raises(
        EvaluationError, match=rf"does not take inputs of {size} px; it was made for (224|128) px"
    ):
        choose_input_size(model, 256, size)


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(
        EvaluationError, match=r"device 'cuda:99' is not available \(\d+ CUDA devices found\)"
    ):
        choose_device("cuda:99")
    with pytest.raises(EvaluationError, match="unknown device 'gpu'; use auto, cpu, cuda"):
        choose_device("gpu")
