"""HEST: our encoder on the data set class of HEST-Benchmark, and the benchmark itself where a clone of it was named.

Without the clone, the benchmark's loop over patches stands here in its place. With it, the benchmark runs as users call
it, on a task made here in place of the Hub's data, and its correlations are compared with ``evaluate expression``.
"""

import functools
import json
import warnings
from importlib import import_module

import h5py
import numpy as np
import pytest
import torch
from cosines import smallest_cosine
from hestcore.datasets import H5HESTDataset

from timm_mvhybrid.cohorts.hest_writer import write_sample, write_split
from timm_mvhybrid.data import open_source
from timm_mvhybrid.evaluate import (
    EmbeddingOptions,
    ExpressionOptions,
    ProbeOptions,
    embed,
    evaluate_expression,
    load_backbone,
)
from timm_mvhybrid.integrations.hest import PATCH_SIZE_PX, encoder

NAME = "mvhybrid_small_patch16_256"
CORNERS = ((256, 256), (768, 512), (1280, 1024), (512, 1536), (1536, 2048))


@pytest.fixture(scope="module")
def patches(slide_image, tmp_path_factory):
    """A file of patches as HEST-Benchmark's are: 224 px, with coordinates and barcodes."""
    path = tmp_path_factory.mktemp("hest") / "patches.h5"
    side = PATCH_SIZE_PX
    with h5py.File(path, "w") as file:
        file["img"] = np.stack([np.asarray(slide_image.crop((x, y, x + side, y + side))) for x, y in CORNERS])
        file["coords"] = np.array(CORNERS)
        file["barcode"] = np.array([[f"spot{index}".encode()] for index in range(len(CORNERS))])
    return path


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_patches(hub, patches, tmp_path, precision, record):
    hub(NAME)
    model, transform, precision = encoder(NAME, precision=precision)
    stored = []
    dataset = H5HESTDataset(patches, img_transform=transform, chunk_size=2)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=1):
        images = batch["imgs"].squeeze(0).float()
        with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            stored.append(model(images).cpu().numpy())
    embed(open_source(patches), load_backbone(NAME, pretrained=True), tmp_path / "own.h5", batch_size=2)
    with h5py.File(tmp_path / "own.h5") as file:
        cosine = smallest_cosine(file["embeddings"][:], np.concatenate(stored))
    record(str(precision), cosine=cosine)
    assert cosine >= 0.999


NUM_SPOTS = 40
SAMPLES = ("A", "B", "C")
GENES = tuple(f"G{index}" for index in range(8))


@pytest.fixture(scope="module")
def bench(slide_image, tmp_path_factory):
    """A folder with one task: three samples of tissue, whose genes follow its colours; one is left out at a time."""
    root = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, len(GENES))) / 20
    for sample in SAMPLES:
        coords = rng.integers(0, np.array(slide_image.size) - PATCH_SIZE_PX, (NUM_SPOTS, 2))
        patches = np.stack([
            np.asarray(slide_image.crop((x, y, x + PATCH_SIZE_PX, y + PATCH_SIZE_PX)))
            for x, y in coords.tolist()
        ])  # fmt: skip
        write_sample(
            root / "TASK",
            sample,
            patches=patches,
            coords=coords,
            barcodes=[f"{sample}-{index}" for index in rng.permutation(NUM_SPOTS)],
            counts=rng.poisson(np.exp(1.5 + (patches.mean(axis=(1, 2)) - 200) @ weights)),
            genes=GENES,
            spatial=coords + PATCH_SIZE_PX / 2,
        )
    for index, sample in enumerate(SAMPLES):
        write_split(root / "TASK", index, [other for other in SAMPLES if other != sample], [sample])
    (root / "TASK" / "var_50genes.json").write_text(json.dumps({"genes": GENES}))
    return root


@pytest.fixture(scope="module")
def benchmark(hub, clone, bench, tmp_path_factory):
    """Runs HEST-Benchmark on it: (correlations (genes, folds), mean of the folds, sample → embeddings)."""
    # the package has a function of the module's name
    module = import_module("hest.bench.benchmark")
    hub(NAME)

    @functools.cache
    def run(**options):
        folder = tmp_path_factory.mktemp("hest_run")
        roots = {"bench_data_root": str(bench), "embed_dataroot": str(folder / "embeddings")}
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            # the data lie here already
            patch.setattr(module, "snapshot_download", lambda **_: None)
            # of torch's old names for autocast, and of a machine without CUDA
            warnings.simplefilter("ignore")
            tasks, _ = module.benchmark(
                *encoder(NAME),
                encoders=[],
                datasets=["TASK"],
                results_dir=str(folder),
                num_workers=0,
                **roots,
                **options,
            )
        (details,) = folder.glob("run_*/TASK/custom_encoder/results_kfold.json")
        found = {
            gene["name"]: gene["pearson_corrs"] for gene in json.loads(details.read_text())["pearson_corrs"]
        }
        embeddings = {}
        for sample in SAMPLES:
            with h5py.File(folder / "embeddings" / "TASK" / "custom_encoder" / f"{sample}.h5") as file:
                embeddings[sample] = file["embeddings"][:]
        return np.array([found[gene] for gene in GENES]), tasks[0]["results"][0]["pearson_mean"], embeddings

    return run


def own_scores(bench, num_components, embeddings=None):
    """The same by `evaluate expression`: (correlations (genes, folds), mean of the folds, solver)."""
    options = ExpressionOptions(
        protocols=("csv",),
        panel="task",
        probe=ProbeOptions(num_components=num_components, nan_policy="propagate", num_map_genes=0),
        embedding=EmbeddingOptions(cache=bench.parent / "own_cache", batch_size=128, device="cpu"),
    )
    backbones = [] if embeddings else [load_backbone(NAME, pretrained=True)]
    result = evaluate_expression(
        bench / "TASK", backbones, options, embeddings={"theirs": embeddings} if embeddings else None
    )
    (label,) = result.models_of("csv")
    folds = result.unit_values(label, "csv", "pcc").values()
    found = np.array([[genes[name] for genes in folds] for name in GENES])
    return found, result.summary(label, "csv", "pcc").mean


@pytest.mark.parametrize("components", [16, None])
def test_the_benchmark_gives_the_same_correlations(benchmark, bench, tmp_path, record, components):
    """By HEST's own embeddings to the rounding of a mean, by ours as far as the recipe carries their rounding."""
    if components is None:
        (tmp_path / "config.yaml").write_text("dimreduce: null\n")
        options = {"config": str(tmp_path / "config.yaml")}
    else:
        options = {"latent_dim": components}
    theirs, their_mean, embeddings = benchmark(**options)
    for name, given, bound in (("on HEST's embeddings", embeddings, 1e-6), ("on our own", None, 1e-3)):
        ours, our_mean = own_scores(bench, components, given)
        difference = np.abs(ours - theirs).max()
        record(
            f"{'no PCA' if components is None else 'PCA'}, {name}",
            hest=float(their_mean),
            ours=our_mean,
            largest_difference=float(difference),
        )
        assert difference <= bound
        assert abs(our_mean - their_mean) <= bound
    assert np.ptp(theirs) > 0.1


def test_dimreduce_none_as_an_argument_is_ignored(benchmark):
    with_pca = benchmark(latent_dim=16)[0]
    np.testing.assert_array_equal(benchmark(latent_dim=16, dimreduce=None)[0], with_pca)
