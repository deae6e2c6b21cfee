"""Examples for the pipelines that are clones, HEST, TRIDENT and CLAM, run as a user does beside stand-ins of them.

A stand-in asks of the backbone what the pipeline asks, by the same names.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.exports import exported
from support.forked import run_module

from timm_mvhybrid.models import MODEL_NAMES

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"
NAME = MODEL_NAMES[0]

HEST_BENCHMARK = """
import json
import torch

def benchmark(encoder, enc_transf, precision, cli_args=None, **kwargs):
    from PIL import Image
    known = {"encoders", "datasets", "bench_data_root", "results_dir"}
    assert set(kwargs) <= known, set(kwargs) - known
    images = torch.stack([enc_transf(Image.new("RGB", (224, 224), color)) for color in ("pink", "purple")])
    with torch.inference_mode(), torch.autocast("cpu", dtype=precision, enabled=False):
        embeddings = encoder(images).cpu().numpy()
    print(json.dumps([list(images.shape), list(embeddings.shape), str(embeddings.dtype), kwargs]))
    result = {"encoder_name": "custom_encoder", "pearson_mean": 0.25, "pearson_std": 0.125}
    return [{"dataset_name": name, "results": [result]} for name in kwargs["datasets"]], {}
"""

TRIDENT_ENCODERS = """
import torch

class CustomInferenceEncoder(torch.nn.Module):
    def __init__(self, enc_name, model, transforms, precision):
        super().__init__()
        self.enc_name, self.model, self.eval_transforms, self.precision = enc_name, model, transforms, precision

    def forward(self, x):
        return self.model(x)

encoder_registry = {"uni_v1": None}
RESIZE_SUPPORTED_PATCH_ENCODERS = frozenset({"uni_v1"})

def encoder_factory(model_name, **kwargs):
    return encoder_registry[model_name](**kwargs)
"""

TRIDENT_PACKAGE = """
from .load import CustomInferenceEncoder, RESIZE_SUPPORTED_PATCH_ENCODERS, encoder_factory, encoder_registry
"""

TRIDENT_SCRIPT = """
import argparse, json
from trident.patch_encoder_models import encoder_registry

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--patch_encoder", choices=list(encoder_registry))
    parser.add_argument("--patch_encoder_ckpt_path")
    parser.add_argument("--patch_encoder_img_size", type=int)
    options = parser.parse_args()
    import torch
    from PIL import Image
    from trident import patch_encoder_models
    from trident.patch_encoder_models.load import encoder_factory, RESIZE_SUPPORTED_PATCH_ENCODERS
    sizes = {}
    if options.patch_encoder_img_size is not None:
        for names in (RESIZE_SUPPORTED_PATCH_ENCODERS, patch_encoder_models.RESIZE_SUPPORTED_PATCH_ENCODERS):
            assert {"uni_v1", options.patch_encoder} <= names
        sizes["target_img_size"] = options.patch_encoder_img_size
    encoder = encoder_factory(options.patch_encoder, weights_path=options.patch_encoder_ckpt_path, **sizes)
    images = encoder.eval_transforms(Image.new("RGB", (256, 256)))[None]
    with torch.inference_mode():
        features = encoder(images).cpu().numpy()
    print(json.dumps([encoder.enc_name, list(images.shape), list(features.shape)]))
"""

CLAM_BUILDER = (
    "def get_encoder(model_name, target_img_size=224):\n    raise NotImplementedError(model_name)\n"
)

CLAM_SCRIPT = """
import argparse, json
import torch
from PIL import Image
from models import get_encoder

parser = argparse.ArgumentParser()
for name in ("data_h5_dir", "data_slide_dir", "slide_ext", "csv_path", "feat_dir"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--model_name", default="resnet50_trunc", choices=["resnet50_trunc", "uni_v1"])
parser.add_argument("--target_patch_size", type=int, default=224)
args = parser.parse_args()
if __name__ == "__main__":
    model, transforms = get_encoder(args.model_name, target_img_size=args.target_patch_size)
    with torch.inference_mode():
        features = model.eval()(transforms(Image.new("RGB", (256, 256)))[None]).cpu().numpy()
    print(json.dumps([args.csv_path, args.slide_ext, list(features.shape)]))
"""


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def run(command, folder):
    """Runs a command in a folder whose packages Python finds, and returns what it printed."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def run_script(script, arguments, folder, monkeypatch):
    """Likewise a script, in a process that has imported torch and timm already."""
    # what a process finds on its path it takes over from this one
    monkeypatch.syspath_prepend(folder)
    code, out, err = run_module(script, arguments, folder=folder)
    assert code == 0, out + err
    return out.splitlines()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder, _ = exported(tmp_path_factory.mktemp("weights"), NAME)
    return folder / "model.safetensors"


def test_hest(tmp_path, weights, monkeypatch):
    packages = {"hest/__init__.py": "", "hest/bench/__init__.py": ""}
    write(tmp_path, {**packages, "hest/bench/benchmark.py": HEST_BENCHMARK})
    arguments = ["out", "--tasks", "IDC", "PRAD", "--checkpoint", weights]
    called, *printed = run_script(EXAMPLES / "hest_benchmark.py", arguments, tmp_path, monkeypatch)
    images, embeddings, dtype, options = json.loads(called)
    assert (images, embeddings, dtype) == ([2, 3, 224, 224], [2, 384], "float32")
    assert options == {
        "encoders": [],
        "datasets": ["IDC", "PRAD"],
        "bench_data_root": str(tmp_path / "hest_bench"),
        "results_dir": str(tmp_path / "out"),
    }
    assert printed == ["IDC: Pearson 0.2500 ± 0.1250", "PRAD: Pearson 0.2500 ± 0.1250"]


@pytest.mark.parametrize("size", [None, 128])
def test_trident(tmp_path, weights, size, monkeypatch):
    files = {
        "trident/__init__.py": "",
        "trident/patch_encoder_models/__init__.py": TRIDENT_PACKAGE,
        "trident/patch_encoder_models/load.py": TRIDENT_ENCODERS,
        "run_batch_of_slides.py": TRIDENT_SCRIPT,
    }
    write(tmp_path, files)
    shutil.copy(EXAMPLES / "trident_slides.py", tmp_path)
    options = ["--patch_encoder", NAME, "--patch_encoder_ckpt_path", weights]
    options += [] if size is None else ["--patch_encoder_img_size", str(size)]
    (printed,) = run_script(tmp_path / "trident_slides.py", options, tmp_path, monkeypatch)
    assert json.loads(printed) == [NAME, [1, 3, size or 256, size or 256], [1, 384]]


def test_clam(tmp_path, weights):
    files = {
        "models/__init__.py": "from .builder import get_encoder\n",
        "models/builder.py": CLAM_BUILDER,
        "extract_features_fp.py": CLAM_SCRIPT,
    }
    write(tmp_path, files)
    script = EXAMPLES / "clam_features.sh"
    printed = run(["bash", script, "slides", "patches", "features", ".tiff", weights], tmp_path)
    assert json.loads(printed[0]) == ["patches/process_list_autogen.csv", ".tiff", [1, 384]]
    refused = subprocess.run(["bash", script, "slides"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "clam_features.sh SLIDES PATCHES FEATURES" in refused.stderr
