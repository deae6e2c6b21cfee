"""A fitted predictor → its card: what it predicts, from which features, how well, and what its intervals mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import ModelCardData

from ..export.model_card import REPOSITORY_PLACEHOLDER, markdown_table

if TYPE_CHECKING:
    from .expression_predictor import ExpressionPredictor

_NOT_RECORDED = "not recorded"


def write_card(predictor: ExpressionPredictor) -> str:
    """Writes the card."""
    reliability = predictor.reliability_
    num_predictable = int(reliability.predictable.sum())
    sections = [
        "# Predictor of gene expression\n\n"
        f"Predicts {len(predictor.genes_)} genes from features of patches of H&E-stained tissue; {num_predictable} of them "
        f"are predictable in studies that were left out. Fitted on {len(predictor.studies_)} studies. For research use; not "
        "a medical device.",
        _use(),
        "## Features\n\n" + _encoder(predictor),
        "## Fit\n\n" + _fit(predictor),
        _intervals(predictor),
        "## Genes\n\nPearson correlation within each left-out study, mean over studies, and its interval at "
        f"{reliability.level:.0%} from resampling studies and spots. A gene is predictable where the interval lies above 0.\n\n{_genes(predictor)}",
    ]
    data = ModelCardData(
        library_name="timm_mvhybrid",
        tags=["timm_mvhybrid", "pathology", "histology", "spatial-transcriptomics", "gene-expression"],
    )
    return f"---\n{data.to_yaml().strip()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _use() -> str:
    return f"""## Use

```python
from timm_mvhybrid.predict import ExpressionPredictor

predictor = ExpressionPredictor.load("hf-hub:{REPOSITORY_PLACEHOLDER}")
predicted = predictor.predict(features)  # mean, lower, upper: (patches, genes); distance, far: (patches,)
```

Loading verifies the sha256 of `predictor.safetensors` and that `predictor.json` belongs to it."""


def _encoder(predictor: ExpressionPredictor) -> str:
    encoder = predictor.encoder_
    if encoder is None:
        return f"Of {predictor.n_features_in_} numbers a patch; the model is {_NOT_RECORDED}."
    rows = {
        "model": encoder.name,
        "weights": encoder.weights,
        "sha256 of the weights": encoder.weights_sha256,
        "features": predictor.n_features_in_,
        **encoder.transform,
        "patch": f"{encoder.patch_size_px or _NOT_RECORDED} px",
        "resolution": f"{encoder.resolution_um_per_px or _NOT_RECORDED} µm/px",
    }
    return markdown_table(("", ""), [(name, str(value)) for name, value in rows.items()])


def _fit(predictor: ExpressionPredictor) -> str:
    provenance = predictor.provenance_
    rows = {
        "regression": "ridge with an intercept on principal components of standardised features",
        "penalty": f"{predictor.alpha_:g} (asked for: {predictor.alpha if predictor.alpha is not None else 'recipe'})",
        "components": predictor.num_components_,
        "studies": ", ".join(predictor.studies_),
        "digest of the data": provenance.data_digest if provenance else _NOT_RECORDED,
        "generated data": ("yes" if provenance.generated else "no") if provenance else _NOT_RECORDED,
        "fitted": provenance.created if provenance else _NOT_RECORDED,
    }
    return markdown_table(("", ""), [(name, str(value)) for name, value in rows.items()])


def _intervals(predictor: ExpressionPredictor) -> str:
    return f"""## Intervals and distance

Intervals aim at covering {predictor.level:.0%} of the spots of a new study, averaged over studies and genes, if that study
is drawn like those of the fit ({predictor.calibration} residuals of left-out studies). They promise nothing for a single
slide, spot or region, nor for stains, scanners or organs that the fit has not seen.

A patch is far where its distance is above 1: farther from the training data than {predictor.far_level:.0%} of the patches of
left-out studies. A slide of which many more are far differs from the training data, such as by its stain. Do not rely on predictions there."""


def _genes(predictor: ExpressionPredictor) -> str:
    found, width = predictor.reliability_, predictor.half_width()
    # genes without a correlation come last
    order = np.argsort(-np.nan_to_num(found.r, nan=-2.0), kind="stable")
    rows = [
        (
            predictor.genes_[gene],
            f"{found.r[gene]:.2f}",
            f"{found.lower[gene]:.2f} to {found.upper[gene]:.2f}",
            "yes" if found.predictable[gene] else "no",
            f"± {width[gene]:.2f}",
        )
        for gene in order
    ]
    return markdown_table(("gene", "r", "interval of r", "predictable", "interval of a prediction"), rows)
