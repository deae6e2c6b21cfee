"""Xenium's output made for tests: transcripts whose places on the H&E image are known."""

import json
import math

import numpy as np

PIXEL_SIZE_UM = 0.2125
SIZE_PX = (600, 400)
GENES = ("EPCAM", "ACTA2", "CD4", "MS4A1", "KRT8")
CONTROLS = ("NegControlProbe_00042", "UnassignedCodeword_0007")


def turned(angle_deg=200.0, scales=(1.4, 1.2), shift=(310.0, 5200.0)):
    """H&E px → morphology px: scaled by another number along x than along y, turned, and shifted."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array(
        [
            [cos * scales[0], -sin * scales[1], shift[0]],
            [sin * scales[0], cos * scales[1], shift[1]],
            [0, 0, 1],
        ]
    )


def um_per_px(matrix, pixel_size=PIXEL_SIZE_UM):
    """Of the H&E image."""
    return pixel_size * math.sqrt(abs(np.linalg.det(matrix)))


def scattered(number=3000, seed=0, size=SIZE_PX):
    """Places all over an image, features and qualities."""
    rng = np.random.default_rng(seed)
    places = rng.uniform((0, 0), size, (number, 2))
    features = np.array(GENES + CONTROLS)[rng.choice(7, number, p=[0.35, 0.25, 0.1, 0.1, 0.1, 0.06, 0.04])]
    return places, features, rng.choice([12.0, 20.0, 35.0], number, p=[0.2, 0.2, 0.6])


def write_bundle(folder, places_px, features, qv, matrix, columns=None):
    """Writes transcripts that lie at ``places_px`` of the H&E image, as the forward matrix says."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    morphology = (matrix @ np.column_stack([places_px, np.ones(len(places_px))]).T)[:2] * PIXEL_SIZE_UM
    table = {
        "transcript_id": np.arange(len(features), dtype=np.uint64),
        "feature_name": np.asarray(features).astype("S"),
        "x_location": morphology[0],
        "y_location": morphology[1],
        "z_location": np.zeros(len(features), np.float32),
        "qv": np.asarray(qv, np.float32),
        **(columns or {}),
    }
    arrays = {name: pyarrow.array(values) for name, values in table.items() if values is not None}
    parquet.write_table(pyarrow.table(arrays), folder / "transcripts.parquet", row_group_size=500)
    facts = {"major_version": 5, "pixel_size": PIXEL_SIZE_UM, "analysis_sw_version": "xenium-3.1.0.4"}
    (folder / "experiment.xenium").write_text(json.dumps(facts))
    return folder


def write_panel(folder, targets):
    """Writes the panel: pairs of what a target is called and its name."""
    listed = [
        {"codewords": [number], "type": {"data": {"id": f"T{number}", "name": name}, "descriptor": kind}}
        for number, (kind, name) in enumerate(targets)
    ]
    content = {"metadata": {}, "payload": {"panel": {}, "targets": listed}}
    (folder / "gene_panel.json").write_text(json.dumps(content))


def write_matrix(file, matrix):
    """As Xenium Explorer exports it."""
    lines = [",".join(repr(float(value)) for value in row) for row in np.asarray(matrix)[:2]]
    file.write_text("\n".join([*lines, "0,0,1"]) + "\n")
    return file
