"""A SpatialData zarr store (table, shapes, image, transformations) → spots in px of a slide image.

Everything is read by the package ``spatialdata``: centres of circles, polygons or labels in a coordinate system, and from
there by the inverse of an image's transformation to its px. Such px lie as those of slides do: the first goes from 0 to 1
and its middle is at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, Suppress, arg

from ..data.plain_image import open_slide
from ..runtime.errors import DataError, ParameterError
from ..runtime.extras import require
from ..runtime.names import unique_positions
from .counts import counts_of
from .spot_sample import PatchOptions, SpotSample
from .store_elements import EXTRA, affine_matrix, choose_element, level0, open_store, quiet_spatialdata

_DESCRIPTIONS = ("zarr.json", ".zmetadata", ".zattrs", ".zgroup", ".zarray")
_LARGEST_IRREGULARITY = 1.1
"""Of distances to the nearest neighbour, between half of the spots and the nearest twentieth."""
_ATTRIBUTES = "spatialdata_attrs"


@dataclass(frozen=True, kw_only=True)
class SpatialDataStore:
    """Where the spots of a sample are in a store, see ``SpotSource``.

    Attributes:
        folder: The store.
        slide: The slide image.
        table: Table of the counts; by default the only one.
        region: Shapes or labels that the table annotates; by default the only ones.
        image: Image in whose px the slide image is; by default the slide image has the unit of the coordinate system.
        coordinate_system: System that shapes and image have in common; by default global, or the only one.
        counts_layer: Layer of the table that holds raw counts, or raw; by default X.
        pitch_um: Distance of neighbouring spots in µm, centre to centre (100 of Visium), which gives the size of a px.

    Raises:
        ParameterError: If a value is outside its range.
    """

    folder: Annotated[Positional[Path], arg(metavar="STORE.zarr")]
    slide: Annotated[Path | None, Suppress] = None
    table: Annotated[str | None, arg(metavar="NAME")] = None
    region: Annotated[str | None, arg(metavar="NAME")] = None
    image: Annotated[str | None, arg(metavar="NAME")] = None
    coordinate_system: Annotated[str | None, arg(metavar="NAME")] = None
    counts_layer: Annotated[str | None, arg(metavar="NAME")] = None
    pitch_um: Annotated[float | None, arg(metavar="UM")] = None

    def __post_init__(self) -> None:
        if self.pitch_um is not None and not 0 < self.pitch_um < math.inf:
            raise ParameterError(f"`pitch_um` must be above 0, not {self.pitch_um}")

    @property
    def table_name(self) -> str:
        """Name of the table."""
        return choose_element(self.folder, "tables", self.table)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files by which the store is told: its description, its shapes and the counts of the table.

        Raises:
            DataError: If the folder is no such store, or names and their number leave open what is meant.
        """
        if self.image is not None:
            choose_element(self.folder, "images", self.image)
        table = self.folder / "tables" / self.table_name
        matrix = table / ("X" if self.counts_layer is None else "raw/X")
        if self.counts_layer not in (None, "raw"):
            matrix = next(
                (layer for layer in table.glob("layers/*") if layer.name == self.counts_layer), matrix
            )
        # the descriptions of arrays are in that of the store; what tells files apart is their path in the store
        arrays = sorted(file for file in matrix.rglob("*") if file.is_file())
        chunks = [file for file in arrays if file.name not in _DESCRIPTIONS]
        described = [self.folder / name for name in _DESCRIPTIONS if (self.folder / name).is_file()]
        return (*described, *sorted((self.folder / "shapes").glob("*/shapes.parquet")), *chunks)

    @property
    def _image(self) -> Path:
        if self.slide is None:
            raise ParameterError(
                "`slide` is missing; give it, or write an image of the store by `write_image_element`"
            )
        return self.slide

    def read(self, sample_id: str, patches: PatchOptions) -> SpotSample:
        """Reads the spots of the region, in the order of the table.

        Raises:
            DataError: If the store cannot be read, an element lacks what the others name, or the slide has not the size of
                the image.
            MissingPackageError: If spatialdata is not installed.
        """
        data = open_store(self.folder)
        name = self.table_name
        where = self.folder / "tables" / name
        table = data.tables[name]
        region, rows, instances = self._annotated(where, table)
        counts = counts_of(where, table[rows], self.counts_layer)
        system = self._system([region, *([] if self.image is None else [self.image])], data)
        element = data[region]
        centres, sizes = _centres(self.folder / region, element, system)
        places = self._pick(region, centres, instances)
        matrix: NDArray[np.float64] = np.eye(3)
        if self.image is not None:
            matrix = np.linalg.inv(affine_matrix(data[self.image], system)).astype(np.float64)
            self._check_size(level0(data[self.image]))
        places = places @ matrix[:2, :2].T + matrix[:2, 2]
        measured = replace(counts, spatial=places).under_tissue()
        assert measured.spatial is not None
        um_per_px = None if self.pitch_um is None else self.pitch_um / _pitch_px(where, measured.spatial)
        size_px = None
        if sizes is not None:
            size_px = sizes * math.sqrt(
                abs(np.linalg.det(matrix[:2, :2] @ affine_matrix(element, system)[:2, :2]))
            )
        um = um_per_px or open_slide(self._image).resolution_um_per_px
        shape: Literal["circle", "square"] = (
            "circle" if "radius" in getattr(element, "columns", ()) else "square"
        )
        return SpotSample(
            sample_id=sample_id,
            barcodes=measured.barcodes,
            genes=measured.genes,
            counts=measured.values,
            spatial=measured.spatial,
            um_per_px=um_per_px,
            um_per_px_from=f"the {self.pitch_um or 0:g} µm between neighbours",
            spot_shape=shape,
            spot_size_um=None if size_px is None or um is None else size_px * um,
            image=f"the image that has the pixels of {self.image or f'the coordinate system {system!r}'}",
            files=self.files,
            notes={
                "platform": "SpatialData",
                "table": name,
                "region": region,
                "coordinate_system": system,
                "image": self.image,
                "num_other_regions": int((~rows).sum()),
                "num_not_in_tissue": len(counts.barcodes) - len(measured.barcodes),
            },
        )

    def _annotated(self, where: Path, table: Any) -> tuple[str, NDArray[np.bool_], list[Any]]:
        """Finds what the table annotates: the element, the rows that do, and which of its shapes each row is of."""
        keys = table.uns.get(_ATTRIBUTES)
        if keys is None:
            raise DataError(
                f"{where}: annotates no shapes, so its spots have no places; give another `table`"
            )
        regions = keys["region"]
        names = [regions] if isinstance(regions, str) else [str(name) for name in regions]
        region = self.region
        if region is None:
            if len(names) > 1:
                raise DataError(
                    f"{where}: annotates {', '.join(names)}; each is a sample of its own, choose one by `region`"
                )
            region = names[0]
        elif region not in names:
            raise DataError(
                f"{where}: does not annotate '{region}', but {', '.join(names)}; give one as `region`"
            )
        rows = np.asarray(table.obs[keys["region_key"]].astype(str) == region)
        instances = table.obs[keys["instance_key"]][rows].tolist()
        unique_positions(where, "instance", instances, "keep one row for each shape")
        return region, rows, instances

    def _system(self, elements: Sequence[str], data: Any) -> str:
        """Chooses a coordinate system that all elements have."""
        transformations = require("spatialdata.transformations", EXTRA)
        for name in elements:
            if name not in data:
                raise DataError(f"{self.folder}: has no element '{name}'; it has {', '.join(_names(data))}")
        found = [set(transformations.get_transformation(data[name], get_all=True)) for name in elements]
        common = sorted(set.intersection(*found))
        wanted = self.coordinate_system or ("global" if "global" in common else None)
        if wanted is None and len(common) == 1:
            wanted = common[0]
        if wanted is None or wanted not in common:
            what = "have no coordinate system in common"
            if common:
                what = f"have the coordinate system{'s' * (len(common) > 1)} {', '.join(common)} in common"
            asked = f", not '{wanted}'" if wanted else ""
            raise DataError(
                f"{self.folder}: {' and '.join(elements)} {what}{asked}; choose by `coordinate_system`, or align them first"
            )
        return wanted

    def _pick(self, region: str, centres: Any, instances: Sequence[Any]) -> NDArray[np.float64]:
        """Takes the centres of the table's instances, (instances, 2)."""
        position = unique_positions(
            self.folder / region, "shape", centres.index.tolist(), "give each shape an index of its own"
        )
        missing = [name for name in instances if name not in position]
        if missing:
            raise DataError(
                f"{self.folder}: '{region}' lacks the instance {missing[0]!r} of the table ({len(missing)} of {len(instances)}); "
                "write both anew"
            )
        values = centres[["x", "y"]].to_numpy(dtype=np.float64)
        found: NDArray[np.float64] = values[[position[name] for name in instances]]
        return found

    def _check_size(self, image: Any) -> None:
        size = (int(image.sizes["x"]), int(image.sizes["y"]))
        dimensions = open_slide(self._image).dimensions
        if size != dimensions:
            raise DataError(
                f"{self._image}: has {dimensions[0]} × {dimensions[1]} px, and image '{self.image}' of {self.folder} {size[0]} × "
                f"{size[1]}; give the slide that the image was read from"
            )


def _centres(where: Path, element: Any, system: str) -> tuple[Any, float | None]:
    """Returns the centres of shapes or labels in a coordinate system, and their size in their own coordinates."""
    spatialdata = require("spatialdata", EXTRA)
    with quiet_spatialdata():
        try:
            centres = spatialdata.get_centroids(element, coordinate_system=system).compute()
        except (ValueError, AssertionError, TypeError, IndexError) as error:
            raise DataError(
                f"{where}: its shapes have no centres ({' '.join(str(error).split())[:200]}); give circles, polygons or labels"
            ) from error
    columns = getattr(element, "columns", ())
    if "radius" in columns:
        return centres, 2 * float(np.median(element["radius"]))
    if "geometry" in columns:
        return centres, float(np.median(np.sqrt(element.geometry.area)))
    return centres, None


def _pitch_px(where: Path, places: NDArray[np.float64]) -> float:
    """Measures the usual distance from a place to the nearest other."""
    if len(places) < 2:
        raise DataError(f"{where}: one spot has no neighbour; leave `pitch_um` out")
    distances, _ = require("scipy.spatial").cKDTree(places).query(places, k=2)
    least, pitch = np.quantile(distances[:, 1], (0.05, 0.5)).tolist()
    if not pitch > 0:
        raise DataError(f"{where}: most spots have another at the same place; check the shapes")
    if pitch > _LARGEST_IRREGULARITY * least:
        raise DataError(
            f"{where}: the nearest neighbour of a spot is {least:.4g} px away for one in twenty and {pitch:.4g} px for half of them, "
            "so there is no one distance; leave `pitch_um` out, and give `slide_resolution_um_per_px`"
        )
    return float(pitch)


def _names(data: Any) -> list[str]:
    return sorted(name for kind in ("shapes", "labels", "images", "points") for name in getattr(data, kind))
