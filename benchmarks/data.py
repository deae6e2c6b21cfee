"""The data path of pretraining beside the pipeline that runs image by image through Pillow."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from timm_mvhybrid.data import FolderSource, PatchH5Source, SlideSource, TilingOptions
from timm_mvhybrid.runtime.errors import NotASlideError
from timm_mvhybrid.ssl.augmentation import DeviceAugmentation, make_pil_crops
from timm_mvhybrid.ssl.config import CropConfig
from timm_mvhybrid.ssl.crops import CropBatch, make_crops
from timm_mvhybrid.ssl.photometric import PhotometricOptions

from .agreement import DisagreementError
from .goals import Goal
from .measure import Contender, Spread, Times, measure
from .peers import MissingPeerError
from .provenance import ROOT
from .report import Report, Table, format_ratio
from .settings import Settings

WORKERS = "ours, the workers' part"
WHOLE = "ours, with the device's part on this core"
OUR_PIL = "ours, augmentation paper_pil"
PEERS = ("torchvision v1 on Pillow images", "torchvision v2 on Pillow images")
SLIDE = ROOT / "examples" / "data" / "CMU-1-Small-Region.svs"
MEAN, STD = (0.70, 0.56, 0.69), (0.18, 0.21, 0.18)
LIMIT = 3.0
"""Largest mean difference of a crop between the fast path and Pillow's, in levels of 255."""

GOALS = [
    Goal(figure=f"images per second and core, {WORKERS} / {peer}", relation="≥", bound=10) for peer in PEERS
]

Patches = list[NDArray[np.uint8]]


def run(settings: Settings) -> Report:
    """Checks that the fast path gives what Pillow's gives, then times both, and reading by format.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    options = CropConfig(global_size_px=64, local_size_px=28) if settings.quick else CropConfig()
    size = 64 if settings.quick else 256
    num_images = 2 if settings.quick else 16
    patches = example_patches(num_images, size)
    worst = _check_agreement(patches, options)
    figures: dict[str, Spread] = {}
    crops = measure(_crop_contenders(patches, options), settings.effort())
    for contender in (WORKERS, WHOLE):
        for peer in PEERS:
            figures[f"images per second and core, {contender} / {peer}"] = crops.ratio(peer, contender)
    with tempfile.TemporaryDirectory() as folder:
        reading = measure(_reading_contenders(patches, Path(folder)), settings.effort())
    return Report(
        name="data",
        title=(
            f"Data path of pretraining on one core: 2 crops of {options.global_size_px} px and {options.num_local} of "
            f"{options.local_size_px} px from patches of {size} px"
        ),
        method=(
            "One process, interleaved rounds, medians and quartiles; ratios are those within a round. Both sides start "
            "from decoded patches of the example slide. The peers crop, flip, change colours, blur and normalise each crop as "
            "DINOv2's reference does. Ours crops and flips uint8 in the workers and leaves the rest to the device, where it "
            "is batched; its time on this core is given too, though that work is meant for a GPU. Before the timing, crops "
            f"of the fast path agreed with those of the same parameters through Pillow to {worst:.2g} levels of 255 on "
            f"average in the worst crop, allowed {LIMIT:g}."
        ),
        figures=figures,
        goals=GOALS,
        tables=[
            _table("Ten crops of a patch", crops, num_images, WORKERS),
            _table("Reading a patch, by format", reading, num_images, None),
        ],
        notes=[f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"],
        judged=not settings.quick,
    )


def example_patches(num_images: int, size: int) -> Patches:
    """Cuts tissue from the example slide, because noise is neither compressed nor decoded as tissue is.

    Args:
        num_images: Patches, spread over the slide.
        size: Side in px, at the slide's own resolution.

    Returns:
        (size, size, 3) uint8 each.

    Raises:
        MissingPeerError: If no library is installed that opens the slide.
    """
    try:
        source = SlideSource(SLIDE, TilingOptions(patch_size_px=max(size, 256)))
        chosen = np.linspace(0, len(source) - 1, num_images).astype(int).tolist()
        return [np.array(source[index])[:size, :size] for index in chosen]
    except NotASlideError as error:
        raise MissingPeerError(str(error)) from error


def _batch(crops: tuple[Tensor, Tensor], keys: NDArray[np.int64]) -> CropBatch:
    return CropBatch(
        step=0,
        global_crops=crops[0],
        local_crops=crops[1],
        sample_keys=torch.from_numpy(keys),
        indices=torch.arange(len(keys)),
    )


def _check_agreement(patches: Patches, options: CropConfig) -> float:
    """Returns the largest mean difference of a crop to Pillow's, in levels of 255."""
    keys = np.arange(len(patches))
    identity: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    fast = DeviceAugmentation("paper", **identity)(_batch(make_crops(patches, keys, options), keys))
    slow = make_pil_crops(patches, keys, options, PhotometricOptions())
    differences = [
        (ours * 255 - theirs).abs().flatten(1).mean(1).max() for ours, theirs in zip(fast, slow, strict=True)
    ]
    worst = max(difference.item() for difference in differences)
    if not worst <= LIMIT:
        raise DisagreementError(
            f"the fast path and Pillow's differ by {worst:.2g} levels of 255, allowed {LIMIT:g}"
        )
    return worst


def _crop_contenders(patches: Patches, options: CropConfig) -> list[Contender]:
    keys = np.arange(len(patches))
    augment = DeviceAugmentation("paper", mean=MEAN, std=STD)
    calls: dict[str, Callable[[], object]] = {
        WORKERS: lambda: make_crops(patches, keys, options),
        WHOLE: lambda: augment(_batch(make_crops(patches, keys, options), keys)),
        OUR_PIL: lambda: make_pil_crops(patches, keys, options, PhotometricOptions()),
    }
    for peer, library in zip(PEERS, (v1, v2), strict=True):
        pipelines = _pil_pipelines(library, options)
        calls[peer] = lambda pipelines=pipelines: [
            [pipeline(image) for pipeline in pipelines] for image in map(Image.fromarray, patches)
        ]
    return [Contender(name=name, call=call) for name, call in calls.items()]


def _pil_pipelines(library: Any, options: CropConfig) -> list[Callable[[Image.Image], Tensor]]:
    """Composes the ten pipelines of a patch, with the probabilities that the published models saw."""
    if library is v1:
        to_tensor = [library.ToTensor()]
    else:
        to_tensor = [library.PILToTensor(), library.ToDtype(torch.float32, scale=True)]

    def pipeline(size_px: int, scale: tuple[float, float], blur: float) -> Callable[[Image.Image], Tensor]:
        return library.Compose(
            [
                library.RandomResizedCrop(
                    size_px, scale=scale, interpolation=library.InterpolationMode.BICUBIC
                ),
                library.RandomHorizontalFlip(),
                library.RandomApply([library.ColorJitter(0.2, 0.2, 0.2, 0.1)], p=0.8),
                library.RandomGrayscale(0.2),
                library.RandomApply([library.GaussianBlur(9, (0.1, 2.0))], p=blur),
                *to_tensor,
                library.Normalize(MEAN, STD),
            ]
        )

    sizes = options.global_size_px, options.local_size_px
    return [
        pipeline(sizes[0], options.global_scale, 0.0),
        pipeline(sizes[0], options.global_scale, 0.9),
        *[pipeline(sizes[1], options.local_scale, 0.5)] * options.num_local,
    ]


def _reading_contenders(patches: Patches, folder: Path) -> list[Contender]:
    """Writes the patches in the usual formats."""
    sources: dict[str, Any] = {}
    for name, suffix, arguments in (("PNG", ".png", {}), ("JPEG, quality 90", ".jpg", {"quality": 90})):
        (folder / suffix).mkdir()
        for number, patch in enumerate(patches):
            content = io.BytesIO()
            Image.fromarray(patch).save(content, suffix[1:].replace("jpg", "jpeg"), **arguments)
            (folder / suffix / f"{number:03d}{suffix}").write_bytes(content.getvalue())
        sources[name] = FolderSource(folder / suffix)
    for name, compression in (("h5, raw", None), ("h5, lzf", "lzf"), ("h5, gzip", "gzip")):
        path = folder / f"{compression}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset(
                "img", data=np.stack(patches), chunks=(1, *patches[0].shape), compression=compression
            )
        sources[name] = PatchH5Source(path)
    return [
        Contender(name=name, call=lambda source=source: [np.asarray(source[i]) for i in range(len(source))])
        for name, source in sources.items()
    ]


def _table(title: str, times: Times, num_images: int, reference: str | None) -> Table:
    rows = []
    for name in times.seconds:
        rate = num_images / times.spread(name).median
        row = [name, f"{rate:.4g}", f"{1e3 / rate:.3g}"]
        if reference is not None:
            row += format_ratio(times.ratio(name, reference))
        rows.append(row)
    columns = ["", "images / s", "ms an image"]
    if reference is not None:
        columns += [f"time / {reference}", "quartiles"]
    num_rounds = len(next(iter(times.seconds.values())))
    return Table(title=f"{title}, {num_rounds} rounds", columns=columns, rows=rows)
