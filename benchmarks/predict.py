"""Prediction of a slide beside embedding it alone: patches/s, and how peak memory grows with the number of patches."""

import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import tifffile

from timm_mvhybrid.data import SlideSource, TilingOptions, source_digest
from timm_mvhybrid.embed.backbone import Backbone, load_backbone
from timm_mvhybrid.embed.embedding_cache import EmbeddingOptions, cache_file, transform_of, weights_digest
from timm_mvhybrid.embed.embedding_store import read_embeddings
from timm_mvhybrid.embed.embeddings import embed
from timm_mvhybrid.embed.pooling import embedding_dim
from timm_mvhybrid.predict import EncoderRecord, ExpressionPredictor, SlideOptions, predict_slide

from .agreement import DisagreementError
from .goals import Goal
from .measure import Contender, Spread, measure
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings

NUM_GENES = 50
MODEL = "mvhybrid_small_patch16_256"
EMBED, PREDICT = "embed", "predict"
SPEED = "patches/s, predict / embed"
GROWTH = "peak memory, growth / growth of the result"
GOALS = [
    Goal(figure=SPEED, relation="≥", bound=0.95),
    # the result, and the page while it is put together
    Goal(figure=GROWTH, relation="≤", bound=1.5),
]
_TILE_PX = 512
_MIB = 1 << 20


def run(settings: Settings) -> Report:
    """Checks that the predictions are those of embed's features, then times both, then measures memory.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    side_px, patch_px, model = (128, 64, "test_vit12") if settings.quick else (256 * 16, 256, MODEL)
    strides = (48, 24) if settings.quick else (48, 16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, backbone = _slide(folder / "slide.tif", side_px, patch_px), load_backbone(model)
        predictor = _predictor(backbone, source, embedding_dim(backbone.model, "model"))
        _check_agreement(folder, source, backbone, predictor)
        contenders = [
            Contender(name=EMBED, call=lambda: _embed(folder, source, backbone)),
            Contender(name=PREDICT, call=lambda: _predict(folder, source, backbone, predictor)),
        ]
        times = measure(contenders, settings.effort(min_rounds=3, max_rounds=9))
        side = 480 if settings.quick else 3600
        peaks = dict(_peak_bytes(folder / f"stride_{stride}", side, stride) for stride in strides)
    ratio = times.ratio(EMBED, PREDICT)
    (few, low), (many, high) = peaks.items()
    growth = (high - low) / (many - few)
    result = 3 * 4 * NUM_GENES
    exact = growth / result
    return Report(
        name="predict",
        title=f"Prediction of {NUM_GENES} genes on a slide of {len(source)} patches of {patch_px} px by {model}, on a CPU",
        method=(
            "Both start from the slide and an empty cache; predict also writes h5ad and page. Predictions agreed with those of "
            "embed's features to the bit before the timing. One process, interleaved rounds. Peak memory is that of a process "
            "(its resident set) which predicts from cached embeddings of 384 values, on one slide at two strides; the result is 3 × 50 values of 4 bytes a "
            "patch, the embeddings would be 1,536 bytes."
        ),
        figures={SPEED: ratio, GROWTH: Spread(median=exact, low=exact, high=exact)},
        goals=GOALS,
        tables=[
            Table(
                title=f"One slide, {len(times.seconds[EMBED])} rounds",
                columns=["", "ms", "quartiles", "time / embed", "quartiles", "patches/s"],
                rows=[
                    [
                        name,
                        *format_seconds(times.spread(name)),
                        *format_ratio(times.ratio(name, EMBED)),
                        f"{len(source) / times.spread(name).median:.1f}",
                    ]
                    for name in (EMBED, PREDICT)
                ],
            ),
            Table(
                title="Peak memory",
                columns=["patches", "MiB", "bytes a patch beyond the first"],
                rows=[
                    [f"{few:,}", f"{low / _MIB:.0f}", ""],
                    [f"{many:,}", f"{high / _MIB:.0f}", f"{growth:.0f} (result {result})"],
                ],
            ),
        ],
        judged=not settings.quick,
    )


def _slide(path: Path, side_px: int, patch_px: int) -> SlideSource:
    """Writes a square slide that is tissue throughout, 0.5 µm/px, with a smaller level."""
    rng = np.random.default_rng(0)
    texture = rng.integers(60, 200, (_TILE_PX, _TILE_PX, 1), dtype=np.uint8)
    tile = np.concatenate([texture, texture // 2, texture], axis=2)
    repeats = -(-side_px // _TILE_PX)
    pixels = np.tile(tile, (repeats, repeats, 1))[:side_px, :side_px]
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 8):
            writer.write(
                np.ascontiguousarray(pixels[::step, ::step]),
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(step > 1),
                metadata=None,
                resolution=(2e4 / step, 2e4 / step),
                resolutionunit="CENTIMETER",
            )
    return SlideSource(path, TilingOptions(patch_size_px=patch_px))


def _predictor(backbone: Backbone, source: SlideSource, dim: int) -> ExpressionPredictor:
    """Fits genes on drawn features; what they mean does not matter for time and memory."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(400, dim)).astype(np.float32), rng.normal(size=(400, NUM_GENES))
    record = EncoderRecord(
        name=backbone.name,
        weights="random",
        weights_sha256=weights_digest(backbone),
        seed=0,
        transform=transform_of(backbone, source, EmbeddingOptions()),
        patch_size_px=source.patch_size_px,
        resolution_um_per_px=0.5,
    )
    fit = ExpressionPredictor(alpha=1.0, num_components=None, num_resamples=50)
    return fit.fit(X, y, studies=np.arange(400) % 4, encoder=record)


def _embed(folder: Path, source: SlideSource, backbone: Backbone) -> None:
    """Does what the command does: opens the slide, embeds its tissue, writes the h5."""
    again = SlideSource(source.path, TilingOptions(patch_size_px=source.patch_size_px))
    embed(again, backbone, folder / "embedded.h5", device="cpu", overwrite=True)


def _predict(folder: Path, source: SlideSource, backbone: Backbone, predictor: ExpressionPredictor) -> Path:
    for name in ("cache", "predicted"):
        shutil.rmtree(folder / name, ignore_errors=True)
    options = SlideOptions(cache=folder / "cache", num_workers=0, device="cpu")
    return predict_slide(source.path, predictor, folder / "predicted", options, backbone=backbone).output


def _check_agreement(
    folder: Path, source: SlideSource, backbone: Backbone, predictor: ExpressionPredictor
) -> None:
    _embed(folder, source, backbone)
    expected = predictor.predict(read_embeddings(folder / "embedded.h5").embeddings).mean
    with h5py.File(_predict(folder, source, backbone, predictor)) as file:
        found = file["X"][()]
    if not np.array_equal(found, expected):
        raise DisagreementError("predict and embed differ in their features")


def _peak_bytes(folder: Path, side_px: int, stride_px: int) -> tuple[int, int]:
    """Counts the patches of a slide, and measures ``memory_main`` in a process of its own."""
    num_patches = prepare(folder, side_px, stride_px)
    command = [sys.executable, "-m", "benchmarks.predict", str(folder), str(stride_px)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return num_patches, int(done.stdout.splitlines()[-1])


def prepare(folder: Path, side_px: int, stride_px: int) -> int:
    """Writes a slide, a predictor of 384 features, and such features of its patches, of 48 px, into a cache.

    Returns:
        Number of patches.
    """
    folder.mkdir()
    dim, patch_px = 384, 48
    _slide(folder / "slide.tif", side_px, patch_px)
    source = SlideSource(
        folder / "slide.tif", TilingOptions(patch_size_px=patch_px, overlap_px=patch_px - stride_px)
    )
    backbone = load_backbone("test_vit12")
    _predictor(backbone, source, dim).save(folder / "predictor")
    file = cache_file(
        folder / "cache",
        backbone.name,
        weights_digest(backbone),
        transform_of(backbone, source, EmbeddingOptions()),
        source.path.stem,
        source_digest(source),
    )
    file.parent.mkdir(parents=True)
    rng = np.random.default_rng(2)
    with h5py.File(file, "w") as content:
        stored = content.create_dataset("embeddings", (len(source), dim), np.float32, chunks=(64, dim))
        for start in range(0, len(source), 4096):
            rows = min(4096, len(source) - start)
            stored[start : start + rows] = rng.normal(size=(rows, dim))
    return len(source)


def memory_main(folder: Path, stride_px: int) -> int:
    """Predicts what ``prepare`` wrote.

    Returns:
        Peak of the resident set of this process, bytes.
    """
    options = SlideOptions(cache=folder / "cache", num_workers=0, device="cpu", stride_px=stride_px)
    outcome = predict_slide(folder / "slide.tif", folder / "predictor", folder / "predicted", options)
    if outcome.was_embedded:
        raise DisagreementError("the embeddings were not taken from the cache")
    # kilobytes, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(memory_main(Path(sys.argv[1]), int(sys.argv[2])))
