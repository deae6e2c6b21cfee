"""What every pipeline's tests stand on: tiles of a real slide, a Hub of our own, and our own features to compare with.

These tests need their pipelines, so they are collected only where ``run.py`` starts them, with the configuration that
lies beside this file.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SLIDE = ROOT / "examples" / "data" / "CMU-1-Small-Region.svs"
TILE_PX = 256
# top left corners in px, of tissue of several kinds
TILE_CORNERS = ((768, 512), (640, 768), (1280, 1024), (1152, 1536), (1536, 2048), (1664, 2432))


def is_pipeline_run(config):
    return config.inipath == HERE / "pytest.ini"


def pytest_addoption(parser):
    parser.addoption("--measured", type=Path, help="file for what the tests measured")
    parser.addoption("--folder", type=Path, help="images to embed in place of tiles of the slide shipped")
    parser.addoption(
        "--clone", type=Path, help="folder of the pipeline's clone, which Python finds its packages in"
    )


def pytest_ignore_collect(collection_path, config):
    if collection_path.suffix == ".py" and not is_pipeline_run(config):
        return True
    return None


def pytest_configure(config):
    """Starts the Hub before anything imports huggingface_hub, which reads its address once."""
    if not is_pipeline_run(config):
        return
    from support.hub_server import HubServer

    config.measured = {}
    config.hub_home = tempfile.TemporaryDirectory()
    config.hub_server = HubServer().__enter__()
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TIMM_MVHYBRID"))]:
        del os.environ[name]
    os.environ |= {
        "HF_ENDPOINT": config.hub_server.url,
        "HF_HOME": config.hub_home.name,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def pytest_unconfigure(config):
    if not is_pipeline_run(config):
        return
    config.hub_server.__exit__()
    config.hub_home.cleanup()
    path = config.getoption("--measured")
    if path is not None:
        path.write_text(json.dumps(config.measured, indent=2))


@pytest.fixture(scope="session")
def record(request):
    """Writes figures into ``results.json``: ``record("dense", cosine=0.9999)``."""

    def write(name, **figures):
        request.config.measured.setdefault(name, {}).update(figures)

    return write


@pytest.fixture(scope="session")
def clone(request):
    """The folder of the pipeline's clone."""
    if request.config.getoption("--clone") is None:
        pytest.skip("no clone was named")
    return request.config.getoption("--clone")


@pytest.fixture(scope="session")
def slide():
    """A real H&E slide, 0.499 µm/px."""
    return SLIDE


@pytest.fixture(scope="session")
def slide_image():
    """The same as one picture, RGB; pixel for pixel what OpenSlide reads at level 0."""
    from PIL import Image

    with Image.open(SLIDE) as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def tiles(request, tmp_path_factory, slide_image):
    """A folder of tiles of the slide, 256 px each at its own resolution."""
    if request.config.getoption("--folder"):
        return request.config.getoption("--folder")
    folder = tmp_path_factory.mktemp("tiles")
    for x, y in TILE_CORNERS:
        slide_image.crop((x, y, x + TILE_PX, y + TILE_PX)).save(folder / f"tile_{x:04}_{y:04}.png")
    return folder


@pytest.fixture(scope="session")
def hub(request, tmp_path_factory):
    """Publishes a model where ``pretrained=True`` looks for it, here and in processes started from here.

    ``hub(name)`` returns the model with the published weights, which are random and none of the initial ones.
    """
    from support.exports import exported
    from support.hub_server import Repository

    models = {}

    def publish(name):
        if name not in models:
            folder, models[name] = exported(tmp_path_factory.mktemp("exports"), name)
            repository = Repository()
            repository.commit({path.name: path.read_bytes() for path in folder.iterdir()})
            request.config.hub_server.repositories[models[name].pretrained_cfg["hf_hub_id"]] = repository
        return models[name]

    return publish


@pytest.fixture(scope="session")
def own_features(hub, tmp_path_factory):
    """Our own embeddings: ``own_features(name, folder)`` → ({file name: row}, array (images, dim) float32).

    Images are embedded by this package's ``embed`` with the published weights; further arguments go there.
    """
    import h5py

    from timm_mvhybrid.data import open_source
    from timm_mvhybrid.evaluate import embed, load_backbone

    def compute(name, folder, **options):
        hub(name)
        output = tmp_path_factory.mktemp("own") / "embeddings.h5"
        embed(open_source(folder), load_backbone(name, pretrained=True), output, batch_size=4, **options)
        with h5py.File(output) as file:
            rows = {Path(path).name: row for row, path in enumerate(file["paths"].asstr()[:])}
            return rows, file["embeddings"][:]

    return compute


@pytest.fixture(scope="session")
def crops(slide_image, tmp_path_factory):
    """Saves squares of the slide, by top left corner in px and side, as ``00000.png`` and so on in a new folder."""

    def cut(corners, side=TILE_PX):
        folder = tmp_path_factory.mktemp("crops")
        for index, (x, y) in enumerate(corners):
            assert x + side <= slide_image.width, "beyond the edge, where pipelines fill in different colours"
            assert y + side <= slide_image.height
            slide_image.crop((x, y, x + side, y + side)).save(folder / f"{index:05}.png")
        return folder

    return cut


@pytest.fixture(scope="session")
def example():
    """Runs ``examples/pipelines/NAME`` as a user does, and fails with its output if it fails."""

    def run(name, *arguments, timeout=600, cwd=None):
        script = ROOT / "examples" / "pipelines" / name
        result = subprocess.run(
            ["bash" if script.suffix == ".sh" else sys.executable, str(script), *map(str, arguments)],
            cwd=cwd,
            check=False,
            timeout=timeout,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, f"{script.name}:\n{result.stdout[-6000:]}"
        return result.stdout

    return run
