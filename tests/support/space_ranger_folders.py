"""Folders as Space Ranger writes them, generated with landmarks: a red disc of the image, and a gene that only it expresses."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas
import scipy.io
from PIL import Image, ImageDraw
from scipy import sparse

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
RED, PALE = (200, 30, 40), (225, 205, 220)
UM_PER_PX = 2.5
SIZE_PX = (700, 500)
"""Wider than high, so that x and y cannot be taken for each other."""
DISC = (520, 150, 90)
"""x, y and radius of the red disc in px."""
MARKER = "DISC1"
"""The gene that is expressed on the disc, and nowhere else."""


@dataclass
class Folder:
    """A generated sample.

    Attributes:
        outs: Space Ranger's folder.
        image: The image at full resolution.
        table: The table of positions: a row for each spot or bin.
        counts: Raw counts, (rows of the table, features), dense.
        ids: Identifier of each feature.
        symbols: Symbol of each feature.
        types: Type of each feature.
    """

    outs: Path
    image: Path
    table: pandas.DataFrame
    counts: np.ndarray
    ids: list[str] = field(default_factory=list)
    symbols: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)

    def on_disc(self) -> np.ndarray:
        """Whether each spot's centre is on the disc."""
        x, y, radius = DISC
        return (
            np.hypot(self.table["pxl_col_in_fullres"] - x, self.table["pxl_row_in_fullres"] - y) < radius
        ).to_numpy()


def write_image(path: Path, *, um_per_px: float | None = None) -> Path:
    """Pale tissue with the red disc."""
    image = Image.new("RGB", SIZE_PX, PALE)
    x, y, radius = DISC
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=RED)
    if um_per_px is None:
        image.save(path)
    else:
        import tifffile

        tifffile.imwrite(
            path,
            np.asarray(image),
            tile=(256, 256),
            photometric="rgb",
            resolution=(1e4 / um_per_px, 1e4 / um_per_px),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
    return path


def visium(
    root: Path,
    *,
    positions: str = "tissue_positions.csv",
    matrix: str = "filtered_feature_bc_matrix.h5",
    degrees: float = 3.0,
    seed: int = 0,
) -> Folder:
    """A Visium sample of 8 × 12 spots, 40 px apart (2.5 µm/px), the array turned a little; the first spots are outside tissue."""
    outs = root / "outs"
    (outs / "spatial").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    pitch = 100 / UM_PER_PX
    rows, cols = np.nonzero(np.add.outer(np.arange(11), np.arange(24)) % 2 == 0)
    turn = np.radians(degrees)
    right, down = cols * pitch / 2, rows * pitch * np.sqrt(3) / 2
    x = 70 + right * np.cos(turn) - down * np.sin(turn)
    y = 40 + right * np.sin(turn) + down * np.cos(turn)
    names = [f"{''.join(draw.choice(list('ACGT'), 16))}-1" for _ in rows]
    table = pandas.DataFrame(
        dict(zip(COLUMNS, (names, (np.arange(len(rows)) >= 9).astype(int), rows, cols, y, x), strict=True))
    )
    # Space Ranger's order is not that of the array
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    folder = Folder(outs, write_image(root / "full.png"), table, np.empty(0))
    folder.ids = ["ENSG01", "ENSG02", "ENSG03", "ENSG04", "CD3_AB", "ENSG05"]
    folder.symbols = [MARKER, "TWICE", "NA", "TWICE", "CD3", ""]
    folder.types = [*["Gene Expression"] * 4, "Antibody Capture", "Gene Expression"]
    folder.counts = draw.poisson(2, (len(table), 6))
    folder.counts[:, 0] = np.where(folder.on_disc(), 5 + draw.poisson(3, len(table)), 0)
    write_positions(outs / "spatial" / positions, table)
    write_scale_factors(outs / "spatial", folder.image, spot_diameter_fullres=35.7)
    kept = slice(None) if matrix.startswith("raw") else table["in_tissue"].to_numpy() == 1
    write_matrix(outs / matrix, folder, kept, seed)
    return folder


def write_positions(path: Path, table: pandas.DataFrame) -> None:
    """Writes a table of positions, as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False, header="list" not in path.name)


def write_scale_factors(folder: Path, image: Path, **factors: float) -> None:
    """Writes the scale factors, and the smaller image that they are of."""
    with Image.open(image) as opened:
        opened.reduce(4).save(folder / "tissue_hires_image.png")
    factors = {"tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.1, **factors}
    (folder / "scalefactors_json.json").write_text(json.dumps(factors))


def write_matrix(path: Path, folder: Folder, kept: object, seed: int = 0) -> None:
    """Writes the counts of some rows in another order: HDF5, or a folder of Matrix Market files, plain if it ends in _plain."""
    order = np.random.default_rng(seed + 1).permutation(np.arange(len(folder.table))[kept])
    barcodes = folder.table["barcode"].to_numpy()[order]
    counts = folder.counts[order]
    if path.suffix == ".h5":
        write_h5(path, counts, barcodes, folder.ids, folder.symbols, folder.types)
        return
    path.mkdir(parents=True, exist_ok=True)
    rows = ["\t".join(row) for row in zip(folder.ids, folder.symbols, folder.types, strict=True)]
    texts = {"features.tsv": "\n".join(rows) + "\n", "barcodes.tsv": "\n".join(barcodes) + "\n"}
    scipy.io.mmwrite(path / "matrix.mtx", sparse.coo_matrix(counts.T), field="integer")
    texts["matrix.mtx"] = (path / "matrix.mtx").read_text()
    for name, text in texts.items():
        (path / name).unlink(missing_ok=True)
        (path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))


def write_h5(path: Path, counts, barcodes, ids, symbols, types, **changed) -> None:
    """Writes counts, (spots, features), as Cell Ranger does, a column a spot; ``changed`` replaces datasets."""
    values = sparse.csr_matrix(counts)
    values.sort_indices()
    names = [np.array(list(texts), dtype="S") for texts in (ids, symbols, types)]
    datasets = {
        "barcodes": np.array(list(barcodes), dtype="S"),
        "data": values.data.astype(np.int32),
        "indices": values.indices.astype(np.int64),
        "indptr": values.indptr.astype(np.int64),
        "shape": np.array([values.shape[1], values.shape[0]], dtype=np.int32),
        "features/id": names[0],
        "features/name": names[1],
        "features/feature_type": names[2],
        "features/genome": np.array([b"GRCh38"] * len(names[0])),
        **changed,
    }
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            if data is not None:
                compression = "gzip" if np.ndim(data) and len(data) else None
                file.create_dataset(f"matrix/{name}", data=data, compression=compression)


def visium_hd(
    root: Path,
    *,
    bin_um: int = 8,
    shape: tuple[int, int] = (100, 130),
    degrees: float = 2.0,
    origin: tuple[float, float] = (120, 60),
    is_mirrored: bool = True,
    fill: float = 0.4,
    num_genes: int = 5,
    seed: int = 0,
    positions: str = "tissue_positions.parquet",
    matrix: str = "filtered_feature_bc_matrix.h5",
    name: str = "s_{size:03d}um_{row:05d}_{col:05d}-1",
) -> Folder:
    """A Visium HD sample; columns run to the left where it is mirrored, as in real ones. Bins of the first rows are outside tissue."""
    square = root / "outs" / "binned_outputs" / f"square_{bin_um:03d}um"
    (square / "spatial").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    rows, cols = (index.ravel() for index in np.indices(shape))
    step = bin_um / UM_PER_PX
    turn = np.radians(degrees)
    right, down = (shape[1] - 1 - cols if is_mirrored else cols) * step, rows * step
    x = origin[0] + right * np.cos(turn) - down * np.sin(turn)
    y = origin[1] + right * np.sin(turn) + down * np.cos(turn)
    in_tissue = (rows >= 9).astype(int)
    names = [name.format(size=bin_um, row=row, col=col) for row, col in zip(rows, cols, strict=True)]
    table = pandas.DataFrame(dict(zip(COLUMNS, (names, in_tissue, rows, cols, y, x), strict=True)))
    folder = Folder(root / "outs", write_image(root / "full.png"), table, np.empty(0))
    folder.ids = [f"ENSG{number:02d}" for number in range(num_genes)]
    folder.symbols = [MARKER, *(f"G{number}" for number in range(1, num_genes))]
    folder.types = ["Gene Expression"] * num_genes
    folder.counts = draw.poisson(1, (len(table), num_genes)) * (draw.random((len(table), num_genes)) < fill)
    folder.counts[:, 0] = np.where(folder.on_disc(), 1 + draw.poisson(1, len(table)), 0)
    write_positions(square / "spatial" / positions, table)
    write_scale_factors(
        square / "spatial",
        folder.image,
        bin_size_um=float(bin_um),
        microns_per_pixel=UM_PER_PX,
        spot_diameter_fullres=step,
    )
    kept = slice(None) if matrix.startswith("raw") else in_tissue == 1
    write_matrix(square / matrix, folder, kept, seed)
    return folder
