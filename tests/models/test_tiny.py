"""The tiny backbones: sizes, and features against numbers that the reference scans gave in float64."""

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from support.bounds import assert_accurate

from timm_mvhybrid.models import MODEL_NAMES, TINY_MODEL_NAMES

# name → features' first values, of weights and an image that a formula gives; made by ``make_golden``
GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_features.json"
PARAMETERS = {  # with a mask token, without a head
    "mvhybrid_tiny_patch16_256": 4_027_200,
    "hydra_hybrid_tiny_patch16_256": 4_730_796,
    "vim_einfft_tiny_patch16_256": 4_036_032,
    "hydra_einfft_tiny_patch16_256": 3_974_808,
    "vit12_tiny_patch16_256": 5_540_736,
    "vit24_tiny_patch16_256": 10_883_712,
}
SIDE, NUM_VALUES = 64, 16


def draw(shape, start):
    """Numbers of deviation 1 by integer arithmetic, the same on every machine: a counter whose 32 bits are mixed."""
    number = (torch.arange(math.prod(shape)) * 0x9E3779B9 + (start + 1) * 0x5851F42D) % 2**32
    for factor, shift in ((0x21F0AAAD, 15), (0x735A2D97, 15)):
        number = (number ^ (number >> 16)) * factor % 2**32
        number = number ^ (number >> shift)
    return (math.sqrt(12) * (number.double() / 2**32 - 0.5)).reshape(shape)


def make_model(name, dtype=torch.float64):
    """A tiny backbone for small images, its matrices and steps filled by a formula; norms and D stay at 1."""
    model = timm.create_model(name, img_size=SIDE, dtype=torch.float64).eval()
    with torch.no_grad():
        for index, (key, parameter) in enumerate(model.named_parameters()):
            if key.endswith(("A_log", "A_b_log")):
                continue  # the models' own, which is no draw
            if "dt" in key and parameter.ndim == 1:
                # in float64: kernels of float32 differ in the last digit
                parameter.copy_(torch.linspace(-4, 0, parameter.numel(), dtype=torch.float64))
            elif parameter.ndim > 1:
                fan_in = math.prod(parameter.shape[1:])
                parameter.copy_(draw(parameter.shape, index) / math.sqrt(fan_in))
            elif "gamma" in key:
                parameter.fill_(0.5)  # LayerScale would hide all blocks
            elif key.endswith("bias"):
                parameter.copy_(0.1 * draw(parameter.shape, index))
    return model.to(dtype)


def features(model, image):
    with torch.no_grad():
        tokens = model.forward_features(image)
    return {"class": tokens[:, 0], "patch": tokens[:, -1]}


def make_golden():
    """Writes the numbers: ``with ops.use_implementation("reference")``, after a change that is meant."""
    from timm_mvhybrid import ops

    image = draw((1, 3, SIDE, SIDE), 999)
    with ops.use_implementation("reference"):
        numbers = {
            name: {
                key: value[0, :NUM_VALUES].tolist()
                for key, value in features(make_model(name), image).items()
            }
            for name in TINY_MODEL_NAMES
        }
    GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n")


@pytest.mark.parametrize("name", TINY_MODEL_NAMES)
def test_number_of_parameters(name):
    model = timm.create_model(name, mask_token=True, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert (model.embed_dim, len(model.blocks), model.default_cfg["input_size"]) == (
        192,
        24 if name.startswith("vit24") else 12,
        (3, 256, 256),
    )


@pytest.mark.parametrize(("tiny", "small"), list(zip(TINY_MODEL_NAMES, MODEL_NAMES, strict=True)))
def test_same_kinds_of_blocks_as_the_small_one(tiny, small):
    kinds = {}
    for name in (tiny, small):
        blocks = timm.create_model(name, device="meta").blocks
        kinds[name] = [
            (type(block).__name__, type(getattr(block, "mixer", None)).__name__) for block in blocks
        ]
    # every second block: first state-space layers, then attention
    expected = kinds[small] if tiny.startswith(("vit12", "vit24")) else kinds[small][::2]
    assert kinds[tiny] == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in TINY_MODEL_NAMES),
        # test_goldens.py has float32 of each kind of block; its condition takes seconds at this size
        ("mvhybrid_tiny_patch16_256", torch.float32),
    ],
)
def test_features(name, dtype):
    exact = {
        key: torch.tensor(value, dtype=torch.float64)
        for key, value in json.loads(GOLDEN.read_text())[name].items()
    }
    image = draw((1, 3, SIDE, SIDE), 999)
    model = make_model(name, dtype)
    actual = {key: value[0, :NUM_VALUES] for key, value in features(model, image.to(dtype)).items()}
    if dtype == torch.float64:
        for key, value in exact.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-10, atol=1e-10)
        return
    wide = Features(make_model(name))
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def by_definition(inputs):
        drawn = {f"model.{key}": inputs[key] for key in parameters}
        with torch.no_grad():
            tokens = torch.func.functional_call(wide, drawn, inputs["image"])
        return {"class": tokens[0, 0, :NUM_VALUES], "patch": tokens[0, -1, :NUM_VALUES]}

    # the patch's values, then a block's channels, wider inside, and all tokens
    roundings = 3 * 16 * 16 + len(model.blocks) * (5 * model.embed_dim + 17)
    inputs = {"image": image.float(), **parameters}
    assert_accurate(actual, by_definition, inputs, roundings=roundings, exact=exact)


class Features(torch.nn.Module):
    """A model's tokens, for ``functional_call``."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model.forward_features(image)
