"""SpatialData stores made for tests: spots whose places in the image are known."""

import numpy as np
from scipy import sparse

WIDTH, HEIGHT = 620, 540
PLACES = np.array([[100.0, 80], [300, 80], [100, 280], [300, 280], [500, 480]])
"""Centres of the spots in px of the image."""
COUNTS = np.array([[1, 0, 2], [0, 3, 0], [40, 0, 0], [9, 9, 9], [5, 5, 5]])
TURN = np.array([[0.3, 1.1, -70.0], [-0.9, 0.2, 800.0], [0, 0, 1]])
"""Px of the image → the coordinate system: turned, stretched more along one axis than along the other, shifted."""
SHRINK = 0.25
"""Coordinates of the shapes → the coordinate system."""


def image_pixels():
    """White with a dark square around the third spot."""
    pixels = np.full((3, HEIGHT, WIDTH), 255, np.uint8)
    pixels[:, 264:296, 84:116] = np.array([120, 40, 90], np.uint8)[:, None, None]
    return pixels


def write_store(
    folder, *, shapes="circles", regions=("spots",), image=None, counts=COUNTS, places=PLACES, **options
):
    """A store whose shapes lie on ``places`` of its image in the coordinate system ``global``."""
    import anndata
    import geopandas
    import pandas as pd
    import shapely
    import spatialdata
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

    affine = Affine(TURN, input_axes=("x", "y"), output_axes=("x", "y"))
    names = [f"s{number}" for number in range(len(PLACES))]
    inside = ((TURN @ np.c_[places, np.ones(len(places))].T)[:2].T) / SHRINK
    scale = Scale([SHRINK, SHRINK], axes=("x", "y"))
    elements = {}
    # in another order than the table has them
    order = [3, 0, 4, 2, 1]
    index = [names[number] for number in order]
    for region in regions:
        if shapes == "circles":
            elements[region] = ShapesModel.parse(
                inside[order], geometry=0, radius=6.0, index=index, transformations={"global": scale}
            )
        elif shapes == "polygons":
            squares = [shapely.box(x - 4, y - 4, x + 4, y + 4) for x, y in inside[order]]
            frame = geopandas.GeoDataFrame(geometry=squares, index=index)
            elements[region] = ShapesModel.parse(frame, transformations={"global": scale})
    labels = {}
    if shapes == "labels":
        pixels = np.zeros((HEIGHT, WIDTH), np.int32)
        for number, (x, y) in enumerate(PLACES.astype(int), start=1):
            pixels[y - 3 : y + 3, x - 3 : x + 3] = number
        labels = {"spots": Labels2DModel.parse(pixels, dims=("y", "x"), transformations={"global": affine})}
        names = list(range(1, len(PLACES) + 1))
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([region for region in regions for _ in names]),
            "spot_id": names * len(regions),
        },
        index=[f"{region}-{number}" for region in regions for number in range(len(names))],
    )
    table = anndata.AnnData(
        sparse.csr_matrix(np.tile(np.asarray(counts, np.float32), (len(regions), 1))),
        obs=obs,
        var=pd.DataFrame(index=["EPCAM", "CD4", "MS4A1"]),
    )
    if "layer" in options:
        table.layers[options["layer"]] = table.X.copy()
        table.X = table.X.multiply(0.5).tocsr()
    if options.get("annotates", True):
        table = TableModel.parse(table, region=list(regions), region_key="region", instance_key="spot_id")
    pixels = image_pixels() if image is None else image
    transformations = {options.get("image_system", "global"): affine, "image_only": Identity()}
    channels = options.get("channels", ["r", "g", "b"] if len(pixels) == 3 else None)
    he = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        transformations=transformations,
        c_coords=channels,
        scale_factors=options.get("scale_factors"),
    )
    store = spatialdata.SpatialData(
        images={"he": he}, labels=labels, shapes=elements, tables={"table": table}
    )
    store.write(folder)
    return folder
