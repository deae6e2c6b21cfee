"""Cohorts of slides: our command beside TRIDENT's and CLAM's, the model's own throughput, Ray, and what a slide costs."""

import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from timm_mvhybrid.data import SlideInput, TilingOptions, open_source
from timm_mvhybrid.embed.backbone import Backbone, load_backbone
from timm_mvhybrid.embed.cohort_run import CohortSummary, embed_slides
from timm_mvhybrid.embed.embeddings import ForwardOptions
from timm_mvhybrid.embed.half_types import DTypeChoice
from timm_mvhybrid.embed.source_embedding import PlacedModel

from .agreement import DisagreementError
from .goals import Goal
from .measure import Contender, Spread, Times, measure, spread
from .peers import MissingPeerError
from .processes import CommandRun, run_command
from .provenance import ROOT
from .report import Report, Table, format_ratio
from .settings import Settings

MODEL, TINY = "mvhybrid_small_patch16_256", "mvhybrid_tiny_patch16_256"
OURS, TRIDENT, CLAM = "ours", "TRIDENT", "CLAM"
LOCAL, RAY = "local", "ray"
NUM_READERS = 2
BATCH = 64
MEMORY = f"peak memory, ours / {TRIDENT}"
ENGINES = f"tiles/s, {RAY} / {LOCAL}"
OVERHEAD = "ms a slide of 10 tiles beside reading and model"


def speed(peer: str) -> str:
    """Names the figure of a peer's seconds a patch over ours."""
    return f"seconds a patch, {peer} / ours"


def share(model: str) -> str:
    """Names the figure of a model's throughput over a cohort, as a share of its own."""
    return f"share of the model's own throughput, {model}"


GOALS = [
    Goal(figure=speed(TRIDENT), relation="≥", bound=1.4),
    Goal(figure=speed(CLAM), relation="≥", bound=1.4),
    Goal(figure=share(MODEL), relation="≥", bound=0.95),
    Goal(figure=share(TINY), relation="≥", bound=0.85),
    Goal(figure=MEMORY, relation="≤", bound=0.75),
    Goal(figure=ENGINES, relation="≥", bound=0.95),
    Goal(figure=OVERHEAD, relation="≤", bound=20),
]
SLIDE = ROOT / "examples" / "data" / "CMU-1-Small-Region.svs"
EXAMPLES = ROOT / "examples" / "pipelines"
_JPEG = {"compression": "jpeg", "compressionargs": {"level": 85}}
_MIB = 1 << 20
_DRAWS = 10
_GLASS = 200
"""From which level on the darkest channel is glass."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        num_slides: Of the cohort, that peers take too.
        slide_px: Width and height of each.
        num_small: Slides of 10 tiles.
        model: That all compute with.
        tiny: The one where reading matters most.
        rounds: Of whole commands.
    """

    num_slides: int = 20
    slide_px: tuple[int, int] = (1024, 1536)
    num_small: int = 1000
    model: str = MODEL
    tiny: str = TINY
    rounds: int = 3


QUICK = Sizes(num_slides=2, slide_px=(1024, 1280), num_small=3, tiny="test_mvhybrid", rounds=2)


def run(
    settings: Settings, clones: dict[str, Path | None], parts: Sequence[str], rounds: int | None = None
) -> Report:
    """Checks that ours gives TRIDENT's features at TRIDENT's places, then times whole commands and their parts.

    Args:
        settings: The options.
        clones: Folder of each peer's clone, by name; None leaves the peer out.
        parts: Of "peers", "share", "engines" and "slides", those to measure.
        rounds: Of whole commands; None takes three.

    Returns:
        The report.
    """
    sizes = QUICK if settings.quick else Sizes(rounds=rounds or Sizes.rounds)
    figures: dict[str, Spread] = {}
    tables: list[Table] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slides = write_cohort(folder / "slides", sizes.num_slides, sizes.slide_px)
        if "peers" in parts:
            tables.append(_beside_peers(folder, slides, sizes, clones, figures, notes))
        if "share" in parts:
            rows = [
                row
                for model in (sizes.model, sizes.tiny)
                for row in _share_of_model(folder, slides, model, sizes, settings, figures)
            ]
            columns = ["model", "", "s", "tiles/s", "share", "quartiles"]
            tables.append(
                Table(title=f"{sizes.num_slides} slides, {NUM_READERS} readers", columns=columns, rows=rows)
            )
        if "engines" in parts:
            tables.append(_engines(folder, slides, sizes, figures, notes))
        if "slides" in parts:
            tables.append(_cost_of_a_slide(folder, sizes, figures))
    return Report(
        name="cohort",
        title=f"Cohorts of slides on a CPU, {settings.threads} threads",
        method=(
            f"{sizes.num_slides} slides of {sizes.slide_px[0]} × {sizes.slide_px[1]} px at 0.5 µm/px, pieces of a real slide as "
            f"JPEG tiles in two levels. Whole commands from nothing to features, the start of Python included, in float32 with "
            f"batches of {BATCH} and the same weights; each finds tissue in its own way, so that seconds are those a patch. Memory "
            "is the proportional set size of all processes of a command, its peak of samples four times a second. Before the timing, features at TRIDENT's places "
            "agreed with TRIDENT's. The model's own throughput is that of the same batches from memory, by the same threads. "
            "Interleaved rounds; medians, quartiles, ratios within a round. Ray's and the local engine's rates count from the "
            "first slide's file to the last one's, so that neither's start counts."
        ),
        figures=figures,
        goals=[goal for goal in GOALS if goal.figure in figures or not settings.quick],
        tables=tables,
        notes=notes,
        judged=not settings.quick,
    )


def write_cohort(folder: Path, num_slides: int, size_px: tuple[int, int]) -> list[Path]:
    """Cuts slides out of the example slide, as Aperio scanners write them: JPEG tiles, a thumbnail, a half level.

    Args:
        folder: Is made.
        num_slides: How many.
        size_px: Width and height of each.

    Returns:
        The slides.
    """
    folder.mkdir()
    with Image.open(SLIDE) as image:
        picture = image.convert("RGB")
    rng = np.random.default_rng(0)
    free = [whole - part for whole, part in zip(picture.size, size_px, strict=True)]
    corners = [tuple(map(int, rng.integers(free))) for _ in range(_DRAWS * num_slides)]
    stained = np.asarray(picture).min(axis=2) < _GLASS
    # those with most tissue
    corners.sort(key=lambda corner: -stained[_window(corner, size_px)].mean())
    paths = []
    for number, (left, top) in enumerate(corners[:num_slides]):
        piece = picture.crop((left, top, left + size_px[0], top + size_px[1]))
        if number % 2:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        paths.append(folder / f"slide_{number:02}.svs")
        description = "Aperio Image Library v12\n|AppMag = 20|MPP = 0.5"
        with tifffile.TiffWriter(paths[-1]) as writer:
            for page, kind in (
                (piece, {"tile": (256, 256), **_JPEG}),
                (piece.resize((64, 64)), {"rowsperstrip": 16}),
                (piece.resize((size_px[0] // 2, size_px[1] // 2)), {"tile": (256, 256), **_JPEG}),
            ):
                writer.write(
                    np.asarray(page), photometric="rgb", metadata=None, description=description, **kind
                )
    return paths


def _window(corner: tuple[int, ...], size_px: tuple[int, int]) -> tuple[slice, slice]:
    left, top = corner
    return slice(top, top + size_px[1]), slice(left, left + size_px[0])


def _write_weights(folder: Path, model: str) -> Path:
    """Writes random weights once, so that all compute with the same."""
    path = folder / f"{model}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        states = load_backbone(model).model.state_dict()
        save_file({name: value.contiguous() for name, value in states.items()}, path)
    return path


def embed_command(inputs: Path, output: Path, model: str, weights: Path, *more: str) -> list[str | Path]:
    """Puts our command together."""
    command: list[str | Path] = [sys.executable, "-m", "timm_mvhybrid", "embed", inputs, "--output", output]
    command += ["--model", model, "--checkpoint", weights, "--batch-size", str(BATCH)]
    return [*command, "--num-workers", str(NUM_READERS), "--device", "cpu", *more]


class _Peers:
    """The commands beside each other: each makes a new folder of features, and says how many patches it has."""

    def __init__(self, folder: Path, slides: list[Path], model: str, clones: dict[str, Path]) -> None:
        self.folder, self.slides, self.model, self.clones = folder, slides[0].parent, model, clones
        self.weights = _write_weights(folder, model)
        self.runs: dict[str, list[tuple[CommandRun, int]]] = {name: [] for name in (OURS, *clones)}
        self.number = 0

    def run(self, name: str) -> None:
        self.number += 1
        output = self.folder / f"{name}_{self.number}"
        steps = {OURS: self._ours, TRIDENT: self._trident, CLAM: self._clam}[name](output)
        patterns = {OURS: "*.h5", TRIDENT: f"*/features_{self.model}/*.h5", CLAM: "features/h5_files/*.h5"}
        total = CommandRun(
            seconds=sum(step.seconds for step in steps),
            peak_bytes=max((step.peak_bytes or 0 for step in steps), default=0) or None,
            output="",
        )
        self.runs[name].append((total, count_patches(output, patterns[name])))

    def _ours(self, output: Path) -> list[CommandRun]:
        return [run_command(embed_command(self.slides, output, self.model, self.weights))]

    def _trident(self, output: Path) -> list[CommandRun]:
        clone = self.clones[TRIDENT]
        command: list[str | Path] = [sys.executable, EXAMPLES / "trident_slides.py", "--task", "all"]
        command += ["--wsi_dir", self.slides, "--job_dir", output, "--mag", "20", "--patch_size", "256"]
        # without a GPU; its own models of tissue would have to be downloaded
        command += ["--segmenter", "otsu", "--gpus", "-1", "--batch_size", str(BATCH)]
        command += ["--max_workers", str(NUM_READERS), "--patch_encoder", self.model]
        command += ["--patch_encoder_img_size", "256", "--patch_encoder_ckpt_path", self.weights]
        return [run_command(command, environment=self._environment(clone))]

    def _clam(self, output: Path) -> list[CommandRun]:
        clone = self.clones[CLAM]
        environment = self._environment(clone) | {"MODEL": self.model}
        command: list[str | Path] = [sys.executable, "create_patches_fp.py", "--source", self.slides]
        command += ["--save_dir", output / "patches", "--patch_size", "256", "--patch_level", "0"]
        # its default finds no tissue on slides as small as these
        command += ["--preset", "bwh_biopsy.csv", "--seg", "--patch"]
        first = run_command(command, cwd=clone, environment=environment)
        command = [sys.executable, "-m", "timm_mvhybrid.integrations.clam", "--checkpoint", self.weights]
        command += ["extract_features_fp.py", "--model_name", self.model, "--target_patch_size", "256"]
        command += ["--data_h5_dir", output / "patches", "--data_slide_dir", self.slides]
        command += ["--csv_path", output / "patches" / "process_list_autogen.csv"]
        command += ["--feat_dir", output / "features", "--slide_ext", ".svs", "--batch_size", str(BATCH)]
        return [first, run_command(command, cwd=clone, environment=environment)]

    @staticmethod
    def _environment(clone: Path) -> dict[str, str]:
        paths = [str(clone), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}

    def check_agreement(self) -> None:
        """Embeds at TRIDENT's places, and compares with TRIDENT's features."""
        theirs = next(self.folder.glob(f"{TRIDENT}_*"))
        output = self.folder / "at_their_places"
        places = next(theirs.glob("*/patches"))
        run_command(embed_command(places, output, self.model, self.weights, "--slide", str(self.slides)))
        for path in sorted(places.parent.glob(f"features_{self.model}/*.h5")):
            with h5py.File(path) as file, h5py.File(output / f"{path.stem}.h5") as own:
                a, b = file["features"][:], own["embeddings"][:]
            difference = float(np.abs(a - b).max() / np.abs(a).max()) if a.shape == b.shape else float("nan")
            # float32 with sums of up to 1536 products, in one order or another
            if not difference <= 1536 * np.finfo(np.float32).eps:
                raise DisagreementError(
                    f"{path.name}: features differ from TRIDENT's by {difference:.2g} of the largest"
                )


def count_patches(folder: Path, pattern: str) -> int:
    """Counts the rows of all feature files of a run."""
    total = 0
    for path in folder.glob(pattern):
        with h5py.File(path) as file:
            total += len(file["coords"])
    if total == 0:
        raise DisagreementError(f"{folder.name}: no patch was embedded")
    return total


def _beside_peers(
    folder: Path,
    slides: list[Path],
    sizes: Sizes,
    clones: dict[str, Path | None],
    figures: dict[str, Spread],
    notes: list[str],
) -> Table:
    there: dict[str, Path] = {}
    for name, clone in clones.items():
        if clone is None:
            notes.append(f"{name} was not measured: give the folder of its clone, --{name.lower()}")
        elif importlib.util.find_spec("cv2") is None:
            raise MissingPeerError(
                f"{name}: its requirements are not installed; pip install -r tests/pipelines/requirements/{name.lower()}.txt"
            )
        else:
            there[name] = clone.absolute()
    peers = _Peers(folder, slides, sizes.model, there)
    names = [OURS, *there]
    for number in range(sizes.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            peers.run(name)
        if number == 0 and TRIDENT in there:
            peers.check_agreement()
    seconds = {name: [run.seconds / count for run, count in peers.runs[name]] for name in names}
    peaks = {name: [run.peak_bytes or 0 for run, _ in peers.runs[name]] for name in names}
    times = Times(seconds)
    for name in there:
        figures[speed(name)] = times.ratio(name, OURS)
    if TRIDENT in there and all(peaks[OURS]) and all(peaks[TRIDENT]):
        ratios = [ours / theirs for ours, theirs in zip(peaks[OURS], peaks[TRIDENT], strict=True)]
        figures[MEMORY] = spread(ratios)
    rows = []
    for name in names:
        count = peers.runs[name][-1][1]
        whole = statistics.median(run.seconds for run, _ in peers.runs[name])
        peak = statistics.median(peaks[name]) / _MIB
        rows.append(
            [name, f"{count}", f"{whole:.1f}", f"{times.spread(name).median * 1e3:.1f}", f"{peak:.0f}"]
        )
        rows[-1] += format_ratio(times.ratio(name, OURS))
    return Table(
        title=f"Whole commands, {sizes.num_slides} slides, {sizes.model}, {sizes.rounds} rounds",
        columns=["", "patches", "s", "ms a patch", "peak MiB", "time / ours", "quartiles"],
        rows=rows,
    )


def _share_of_model(
    folder: Path, slides: list[Path], model: str, sizes: Sizes, settings: Settings, figures: dict[str, Spread]
) -> list[list[str]]:
    backbone = load_backbone(model)
    batches = _read_batches(slides, backbone)
    num_tiles = sum(len(batch) for batch in batches)
    choice = DTypeChoice(dtype="float32")
    placed = PlacedModel(backbone, device="cpu", pool="model", dtype="float32", input_size="auto")
    own, cohort = "from memory", "from slides"
    outputs = iter(range(1 << 30))

    def from_memory() -> None:
        with torch.inference_mode():
            for batch in batches:
                placed.vectors(batch, choice)

    def from_slides() -> None:
        _embed_in_process(slides, backbone, folder / f"{model}_{next(outputs)}")

    contenders = [Contender(name=own, call=from_memory), Contender(name=cohort, call=from_slides)]
    times = measure(contenders, settings.effort(min_rounds=sizes.rounds, max_rounds=9, warmups=0))
    figures[share(TINY if model.endswith(TINY) else model)] = times.ratio(own, cohort)
    rows = []
    for name in (own, cohort):
        seconds = times.spread(name).median
        rows.append([model, name, f"{seconds:.2f}", f"{num_tiles / seconds:.1f}"])
        rows[-1] += format_ratio(times.ratio(own, name))
    return rows


def _tiling(backbone: Backbone) -> TilingOptions:
    return TilingOptions(patch_size_px=backbone.model.pretrained_cfg["input_size"][-1])


def _read_batches(slides: Sequence[Path], backbone: Backbone) -> list[torch.Tensor]:
    """Reads all patches of slides as the command batches them: (B, 3, H, W) uint8 each, of one slide alone."""
    batches = []
    for slide in slides:
        source = open_source(slide, tiling=_tiling(backbone))
        pixels = np.stack([np.asarray(source[index]).transpose(2, 0, 1) for index in range(len(source))])
        batches += torch.from_numpy(pixels).split(BATCH)
    return batches


def _embed_in_process(slides: Sequence[Path], backbone: Backbone, output: Path) -> CohortSummary:
    """Embeds slides as the command does, the start of Python and of the model aside."""
    return embed_slides(
        [SlideInput(path=slide, slide_id=slide.stem) for slide in slides],
        backbone,
        output,
        tiling=_tiling(backbone),
        forward=ForwardOptions(batch_size=BATCH, num_workers=NUM_READERS, device="cpu"),
    )


def _engines(
    folder: Path, slides: list[Path], sizes: Sizes, figures: dict[str, Spread], notes: list[str]
) -> Table:
    if importlib.util.find_spec("ray") is None:
        notes.append("Ray was not measured: pip install 'timm-mvhybrid[ray]'")
        return Table(title="Engines", columns=["engine"], rows=[])
    weights = _write_weights(folder, sizes.model)
    more = {LOCAL: [], RAY: ["--engine", "ray", "--ray-workers", "1", "--ray-cpus", str(NUM_READERS)]}
    seconds: dict[str, list[float]] = {LOCAL: [], RAY: []}
    for number in range(sizes.rounds):
        for engine in (LOCAL, RAY) if number % 2 == 0 else (RAY, LOCAL):
            output = folder / f"engine_{engine}_{number}"
            run_command(embed_command(slides[0].parent, output, sizes.model, weights, *more[engine]))
            seconds[engine].append(seconds_a_tile(output))
    times = Times(seconds)
    figures[ENGINES] = times.ratio(LOCAL, RAY)
    return Table(
        title=f"Engines, {sizes.model}, {sizes.rounds} rounds",
        columns=["engine", "tiles/s", f"{RAY} / {LOCAL}", "quartiles"],
        rows=[
            [name, f"{1 / times.spread(name).median:.1f}", *format_ratio(times.ratio(LOCAL, name))]
            for name in (LOCAL, RAY)
        ],
    )


def seconds_a_tile(output: Path) -> float:
    """Computes seconds a tile from the first slide's file to the last one's."""
    files = sorted(output.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns)
    first, *others = files
    num_tiles = 0
    for path in others:
        with h5py.File(path) as file:
            num_tiles += len(file["coords"])
    return (others[-1].stat().st_mtime_ns - first.stat().st_mtime_ns) / 1e9 / num_tiles


def _cost_of_a_slide(folder: Path, sizes: Sizes, figures: dict[str, Spread]) -> Table:
    """Embeds many slides of 10 tiles, and takes off what reading and the model take alone."""
    backbone = load_backbone("test_vit12")
    side = _tiling(backbone).patch_size_px
    originals = write_cohort(folder / "originals", min(20, sizes.num_small), (5 * side, 2 * side))
    slides = []
    (folder / "small").mkdir()
    for number in range(sizes.num_small):
        original = originals[number % len(originals)]
        slides.append(folder / "small" / f"slide_{number:04}.svs")
        os.link(original, slides[-1])
    start = time.perf_counter()
    batches = _read_batches(originals, backbone)
    reading = (time.perf_counter() - start) / len(originals)
    choice = DTypeChoice(dtype="float32")
    placed = PlacedModel(backbone, device="cpu", pool="model", dtype="float32", input_size="auto")
    with torch.inference_mode():
        placed.vectors(batches[0], choice)
        start = time.perf_counter()
        for batch in batches:
            placed.vectors(batch, choice)
    model = (time.perf_counter() - start) / len(originals)
    whole = _embed_in_process(slides, backbone, folder / "small_features").seconds / len(slides)
    overhead = (whole - model - reading / max(NUM_READERS, 1)) * 1e3
    figures[OVERHEAD] = spread([overhead])
    tiles = statistics.mean(len(batch) for batch in batches)
    columns = [
        "whole",
        "the model alone",
        "opening and reading alone, one process",
        "beside these",
        "slides/s",
    ]
    row = [f"{whole * 1e3:.1f}", f"{model * 1e3:.1f}", f"{reading * 1e3:.1f}", f"{overhead:.1f}"]
    return Table(
        title=f"{sizes.num_small:,} slides of {tiles:.1f} tiles, test_vit12, ms a slide",
        columns=columns,
        rows=[[*row, f"{1 / whole:.1f}"]],
    )
