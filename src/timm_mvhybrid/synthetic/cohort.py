"""A cohort on disk: options → a folder in the HEST layout, complete or absent, every file marked as generated; its montage."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ..cohorts.hest_writer import write_patches, write_split
from ..runtime.anndata_file import write_anndata
from ..runtime.atomic_file import check_unclaimed, claimed, write_file
from ..runtime.atomic_folder import OutputFolder
from ..runtime.errors import EvaluationError
from ..runtime.extras import require
from ..runtime.h5_output import H5Output
from ..version import __version__
from .genes import GenePanel
from .options import PhantomOptions
from .sample import PhantomSample, cohort_genes, draw_sample
from .scanner import MARK
from .spots import PATCH_RESOLUTION_UM_PER_PX, PATCH_SIZE_PX

_ROWS = 4
_PATCHES = 4
_SIDE = 224
_GAP = 6
_TITLE = 26


def draw_montage(task: Path, shown: str = "tissue") -> Image.Image:
    """Draws slides beside patches of up to four studies.

    Args:
        task: The task's folder with ``wsis/`` and ``patches/``.
        shown: What they show, for the title.

    Returns:
        The picture, RGB, titled as generated.
    """
    first_of_study: dict[str, Path] = {}
    for path in sorted((task / "wsis").glob("*.tif")):
        first_of_study.setdefault(path.stem.rsplit("-", 1)[0], path)
    slides = list(first_of_study.items())[:_ROWS]
    wide = round(_SIDE * 1.3)
    size = (
        _GAP + wide + _PATCHES * (_SIDE + _GAP) + _GAP,
        _TITLE + len(slides) * (_SIDE + _GAP),
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    draw.text(
        (_GAP, 5), f"GENERATED {shown}, one study a row: its slide, and patches of 0.112 mm", "black", font
    )
    for row, (study, path) in enumerate(slides):
        top = _TITLE + row * (_SIDE + _GAP)
        with Image.open(path) as slide:
            overview = slide.convert("RGB")
        overview.thumbnail((wide, _SIDE), Image.Resampling.LANCZOS)
        canvas.paste(overview, (_GAP, top))
        draw.text((_GAP + 4, top + 4), study, "black", font)
        for column, patch in enumerate(_varied_patches(task / "patches" / f"{path.stem}.h5")):
            canvas.paste(Image.fromarray(patch), (_GAP + wide + _GAP + column * (_SIDE + _GAP), top))
    return canvas


def _varied_patches(path: Path) -> list[np.ndarray]:
    """Chooses patches that differ: each is the farthest from those already chosen, by colour and contrast."""
    with h5py.File(path, "r") as file:
        images = file["img"][()]
    look = np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=1)
    # the first is a typical one, so that the extremes stay a minority
    chosen = [int(((look - np.median(look, 0)) ** 2).sum(1).argmin())]
    while len(chosen) < min(_PATCHES, len(images)):
        distance = ((look[:, None] - look[chosen]) ** 2).sum(2).min(1)
        chosen.append(int(distance.argmax()))
    return [images[index] for index in chosen]


TASK = "PHANTOM"
"""Name of the task's folder within a cohort."""
_NUM_LISTED_GENES = 50
_MAX_FOLDS = 4


@dataclass(frozen=True, kw_only=True)
class PhantomSummary:
    """What was written.

    Attributes:
        output: The cohort's folder.
        task: The task's folder within it, in the HEST layout.
        num_studies: Studies.
        num_samples: Samples of all studies.
        num_spots: Spots of all samples.
        num_genes: Genes.
        num_bytes: Size of the folder.
    """

    output: str
    task: str
    num_studies: int
    num_samples: int
    num_spots: int
    num_genes: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What stays in memory of a sample after its files are written."""

    sample_id: str
    study: str
    patient: str
    num_spots: int
    log_sum: NDArray[np.float64]
    log_square_sum: NDArray[np.float64]


def write_phantom(
    output: str | Path,
    options: PhantomOptions | None = None,
    *,
    num_workers: int = 0,
    overwrite: bool = False,
    on_sample: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Writes a generated cohort of spatial transcriptomics: slides, patches, counts, studies, and the truth.

    The same options give the same files whatever the number of processes, with the same versions of NumPy, SciPy
    and Pillow.

    Args:
        output: Folder to write: ``PHANTOM/`` in the HEST layout, ``studies.csv``, ``montage.png``, ``README.md``.
        options: What to draw; None takes the defaults.
        num_workers: Processes that draw; 0 draws in this one.
        overwrite: Whether an earlier phantom may be replaced; any other folder never is.
        on_sample: Called after each sample with the number done and the total.

    Raises:
        EvaluationError: If the output exists and may not be replaced, or packages are missing.
        OutputError: If the disk does not take it, or another process writes it.
    """
    options = options or PhantomOptions()
    output = Path(output)
    _check_output(output, overwrite=overwrite)
    require("scipy.ndimage")
    require("anndata")
    with claimed(output), OutputFolder(output, replace=overwrite) as folder:
        task = folder.add_folder(TASK)
        for name in ("patches", "adata", "splits", "wsis"):
            folder.add_folder(f"{TASK}/{name}")
        drawn = []
        num_samples = options.num_studies * options.num_samples
        for one in _draw_all(options, task, num_workers):
            drawn.append(one)
            if on_sample is not None:
                on_sample(len(drawn), num_samples)
        _write_tables(folder.folder, options, drawn)
        marked = PngInfo()
        marked.add_text("Comment", MARK)
        montage = io.BytesIO()
        draw_montage(task, "gratings" if options.bands else "tissue").save(montage, "PNG", pnginfo=marked)
        folder.add("montage.png", montage.getvalue())
        folder.finish()
    return PhantomSummary(
        output=str(output),
        task=str(output / TASK),
        num_studies=options.num_studies,
        num_samples=num_samples,
        num_spots=num_samples * options.num_spots,
        num_genes=options.num_genes,
        num_bytes=sum(file.stat().st_size for file in output.rglob("*") if file.is_file()),
    )


def _check_output(output: Path, *, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise EvaluationError(f"{output}: the folder {output.parent} does not exist; create it first")
    check_unclaimed(output)
    if not output.exists():
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    if not overwrite:
        raise EvaluationError(f"{output}: exists already; replace it with `overwrite=True`")
    readme = output / "README.md"
    if not readme.is_file() or MARK not in readme.read_text(encoding="utf-8", errors="replace"):
        raise EvaluationError(f"{output}: is not a phantom, so it is not replaced; choose another folder")


def _draw_all(options: PhantomOptions, task: Path, num_workers: int) -> Iterator[_Drawn]:
    places = [
        (study, sample) for study in range(options.num_studies) for sample in range(options.num_samples)
    ]
    draw = partial(_draw_and_write, options, task)
    if num_workers == 0:
        yield from map(draw, places)
        return
    # spawned, because torch's threads do not survive a fork
    with ProcessPoolExecutor(min(num_workers, len(places)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(draw, places)
        except BaseException:
            # after a full disk, drawing the remaining samples would be useless
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _draw_and_write(options: PhantomOptions, task: Path, place: tuple[int, int]) -> _Drawn:
    sample = draw_sample(options, *place)
    write_file(task / "wsis" / f"{sample.sample_id}.tif", sample.slide_file)
    _write_patches(task / "patches" / f"{sample.sample_id}.h5", sample)
    _write_counts(task / "adata" / f"{sample.sample_id}.h5ad", sample, cohort_genes(options))
    logs = np.log1p(sample.counts)
    return _Drawn(
        sample_id=sample.sample_id,
        study=sample.study,
        patient=sample.patient,
        num_spots=len(logs),
        log_sum=logs.sum(0),
        log_square_sum=(logs**2).sum(0),
    )


def _write_patches(path: Path, sample: PhantomSample) -> None:
    with H5Output(path) as output:
        output.file.attrs["generated"] = MARK
        attributes = {
            "patch_size_src": sample.patch_size_slide_px,
            "patch_size_target": PATCH_SIZE_PX,
            "downsample": PATCH_RESOLUTION_UM_PER_PX / sample.scanner.um_per_px,
            "pixel_size": sample.scanner.um_per_px,
        }
        write_patches(output.file, sample.patches, sample.coords, sample.barcodes, attributes)
        output.finish()


def _write_counts(path: Path, sample: PhantomSample, panel: GenePanel) -> None:
    pandas, sparse, anndata = require("pandas"), require("scipy.sparse"), require("anndata")
    # sorted by barcode as Space Ranger does, so that rows of counts and of patches are not in the same order
    order = np.argsort(np.array(sample.barcodes))
    spots = pandas.DataFrame(
        {"in_tissue": 1, "array_row": sample.rows[order], "array_col": sample.columns[order]},
        index=[sample.barcodes[index] for index in order],
    )
    genes = pandas.DataFrame(
        {"band": panel.bands, "driver": panel.drivers, "effect": panel.effects, **panel.facts},
        index=list(panel.names),
    )
    counts = sparse.csr_matrix(sample.counts[order].astype(np.float32))
    data = anndata.AnnData(X=counts, obs=spots, var=genes)
    data.obsm["spatial"] = sample.centres[order]
    data.obsm["morphology"] = pandas.DataFrame(
        sample.morphology[order], index=spots.index, columns=list(panel.factors)
    )
    data.uns["generated"] = MARK
    data.uns["sample"] = {"sample_id": sample.sample_id, "study": sample.study, "patient": sample.patient}
    data.uns["scanner"] = {
        key: np.array(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(sample.scanner).items()
    }
    with H5Output(path) as output:
        write_anndata(output.file, data)
        output.finish()


def _write_tables(root: Path, options: PhantomOptions, drawn: list[_Drawn]) -> None:
    task = root / TASK
    panel = cohort_genes(options)
    rows = [(one.sample_id, one.study, one.patient) for one in drawn]
    _write_csv(root / "studies.csv", ("sample_id", "study", "patient"), rows)
    facts = [_cells(values) for values in panel.facts.values()]
    truth = zip(panel.names, panel.bands, panel.drivers, panel.effects.round(4).tolist(), *facts, strict=True)
    _write_csv(task / "genes.csv", ("gene", "band", "driver", "effect", *panel.facts), truth)

    num_spots = sum(one.num_spots for one in drawn)
    mean = np.sum([one.log_sum for one in drawn], axis=0) / num_spots
    variance = np.sum([one.log_square_sum for one in drawn], axis=0) / num_spots - mean**2
    # of bands all genes, so that each has as many
    num_listed = options.num_genes if options.bands else _NUM_LISTED_GENES
    chosen = np.sort(np.argsort(-variance, kind="stable")[:num_listed])
    listed = {"genes": [panel.names[index] for index in chosen], "generated": MARK}
    write_file(task / f"var_{num_listed}genes.json", json.dumps(listed, indent=1) + "\n")

    patients = list(dict.fromkeys(one.patient for one in drawn))
    num_folds = min(_MAX_FOLDS, len(patients))
    for fold in range(num_folds if num_folds > 1 else 0):
        held_out = set(patients[fold::num_folds])
        train = [one.sample_id for one in drawn if one.patient not in held_out]
        test = [one.sample_id for one in drawn if one.patient in held_out]
        write_split(task, fold, train, test)
    resolved = {"generated": MARK, "version": __version__, **options.applied}
    write_file(root / "options.json", json.dumps(resolved, indent=1) + "\n")
    write_file(root / "README.md", _readme(options))


def _cells(values: NDArray[np.float64]) -> list[float | str]:
    return ["" if math.isnan(value) else round(value, 4) for value in values.tolist()]


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_file(path, text.getvalue())


_TRUTH_OF_TISSUE = """Band `low` is tissue architecture, which survives blurring; band `high` is detail within nuclei,
  which does not; band `none` follows no morphology."""
_TRUTH_OF_BANDS = """Patches show gratings, not tissue: in each band of spatial frequency, named by
  cycles in a patch of 112 µm, one that varies along x and one along y. Genes of a band follow its alignment, how the two
  share the band's energy, which itself is the same in every patch; band `none` follows nothing."""


def _readme(options: PhantomOptions) -> str:
    given = ", ".join(f"{name} {value}" for name, value in options.applied.items())
    if options.bands:
        listed = f"`var_{options.num_genes}genes.json` (all genes)"
        truth = _TRUTH_OF_BANDS
    else:
        listed = f"`var_{_NUM_LISTED_GENES}genes.json` (largest variance of log1p counts)"
        truth = _TRUTH_OF_TISSUE
    return f"""# Phantom cohort
{MARK}. Drawn by timm-mvhybrid {__version__}; nothing in it was measured, and nothing follows from it for patients.

- `{TASK}/` has the HEST layout: `patches/` (224 px at 0.5 µm/px), `adata/` (raw counts), `splits/` (by patient),
  {listed}, and the slides in `wsis/`.
- `studies.csv` names each sample's study and patient.
- The truth: `{TASK}/genes.csv` says what drives each gene, `obsm["morphology"]` how much of it each spot has, in
  standard units. {truth}
- Options: {given}.
"""
