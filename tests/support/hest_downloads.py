"""A sample of HEST-1k as it is downloaded, made for tests."""

import json

import numpy as np
from scipy import sparse
from support.generated_slides import write_slide

PLACES = np.array([[300.0, 300], [500, 400], [700, 350], [100, 100]])
COUNTS = np.array([[1, 0, 2], [0, 3, 0], [4, 0, 0], [9, 9, 9]])
FACTS = {
    "id": "TENX1",
    "dataset_title": "Breast,  two views",
    "patient": "Patient 1",
    "st_technology": "Visium",
    "species": "Homo sapiens",
    "oncotree_code": float("nan"),
    "disease_state": "",
    "spot_diameter": 55.0,
    "inter_spot_dist": 100.0,
    "pixel_size_um_embedded": 0.3528,
    "pixel_size_um_estimated": 0.5,
}


def write_download(
    folder, *, facts=FACTS, counts=COUNTS, in_tissue=(1, 1, 1, 0), slide_um_per_px=0.5, spatial=PLACES
):
    import anndata
    import pandas as pd

    for name in ("wsis", "st", "metadata", "patches"):
        (folder / name).mkdir(exist_ok=True)
    write_slide(folder / "wsis" / "TENX1.tif", um_per_px=slide_um_per_px, num_levels=2)
    columns = {} if in_tissue is None else {"in_tissue": list(in_tissue)}
    data = anndata.AnnData(
        sparse.csr_matrix(np.asarray(counts, np.float32)),
        obs=pd.DataFrame(columns, index=["AA-1", "AC-1", "AG-1", "AT-1"]),
        var=pd.DataFrame(index=["EPCAM", "CD4", "MS4A1"]),
        obsm={} if spatial is None else {"spatial": spatial},
    )
    data.write_h5ad(folder / "st" / "TENX1.h5ad")
    if facts is not None:
        (folder / "metadata" / "TENX1.json").write_text(json.dumps(facts))
    return folder
