"""A predictor ↔ a folder: arrays as safetensors, everything else as JSON, each stating what the other must be."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..export.output_folder import check_folder
from ..probes.conformal import NUM_STEPS
from ..probes.reliability import GeneReliability
from ..probes.ridge_model import RidgeModel
from ..runtime.atomic_file import claimed
from ..runtime.atomic_folder import OutputFolder
from ..runtime.codec import decode, dump
from ..runtime.digest import file_sha256
from ..runtime.errors import TimmMVHybridError
from ..runtime.provenance import Provenance
from ..version import __version__
from ..weights.hub_download import download
from .card import write_card
from .errors import PredictorError, as_predictor_errors, not_fitted
from .prediction import EncoderRecord

if TYPE_CHECKING:
    from .expression_predictor import ExpressionPredictor

FORMAT_VERSION = 1
"""Version of the folder's format; a reader refuses newer ones."""
DESCRIPTION_FILE, ARRAYS_FILE, CARD_FILE = "predictor.json", "predictor.safetensors", "README.md"
FILES = (DESCRIPTION_FILE, ARRAYS_FILE, CARD_FILE)
_DIGEST = "timm_mvhybrid_predictor"
_COPY_AGAIN = "copy or download the folder again"
_HUB = re.compile(r"hf[-_]hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_P = TypeVar("_P", bound="ExpressionPredictor")


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What ``predictor.json`` holds beside the format and the files."""

    genes: tuple[str, ...]
    studies: tuple[str, ...]
    parameters: dict[str, Any]
    reliability_level: float
    encoder: EncoderRecord | None
    provenance: Provenance | None
    timm_mvhybrid_version: str


def save_predictor(predictor: ExpressionPredictor, folder: str | Path, *, overwrite: bool = False) -> None:
    """Writes a predictor, see ``ExpressionPredictor.save``."""
    if not hasattr(predictor, "model_"):
        raise not_fitted(type(predictor).__name__)
    output = Path(folder).absolute()
    check_folder(output, overwrite=overwrite, known_files=FILES)
    description = _Description(
        genes=predictor.genes_,
        studies=predictor.studies_,
        # NumPy's numbers are no JSON
        parameters={
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in predictor.get_params().items()
        },
        reliability_level=predictor.reliability_.level,
        encoder=predictor.encoder_,
        provenance=predictor.provenance_,
        timm_mvhybrid_version=__version__,
    )
    content = json.loads(dump(description))
    # a single entry, because safetensors writes several in an order that differs from run to run
    arrays = save(arrays_of(predictor), metadata={_DIGEST: _digest(content)})
    stated = {
        "format": "timm_mvhybrid expression predictor",
        "format_version": FORMAT_VERSION,
        "files": {ARRAYS_FILE: hashlib.sha256(arrays).hexdigest()},
        **content,
    }
    with claimed(output), OutputFolder(output, replace=overwrite) as writer:
        writer.add(ARRAYS_FILE, arrays)
        writer.add(DESCRIPTION_FILE, dump(stated))
        writer.add(CARD_FILE, write_card(predictor))
        writer.finish()


def load_predictor(source: str | Path, kind: type[_P]) -> _P:
    """Reads a predictor, see ``ExpressionPredictor.load``."""
    folder = find_folder(source)
    description, arrays = _read(folder)
    try:
        predictor = kind(**description.parameters)
        predictor.check_params()
    except (TypeError, TimmMVHybridError) as error:
        raise PredictorError(
            f"{folder / DESCRIPTION_FILE}: its parameters are not those of a predictor ({error}); {_COPY_AGAIN}"
        ) from error
    predictor.genes_ = description.genes
    predictor.studies_ = description.studies
    predictor.n_features_in_ = len(arrays["mean"])
    predictor.alpha_ = float(arrays["alpha"][0])
    predictor.num_components_ = len(arrays["components"])
    predictor.model_ = RidgeModel(
        mean=arrays["mean"],
        scale=arrays["scale"],
        components=arrays["components"],
        variances=arrays["variances"],
        residual_variance=float(arrays["residual_variance"][0]),
        coefficients=arrays["coefficients"],
        intercept=arrays["intercept"],
        alpha=predictor.alpha_,
    )
    predictor.reliability_ = GeneReliability(
        studies=description.studies,
        by_study=arrays["reliability_by_study"],
        r=arrays["reliability_r"],
        lower=arrays["reliability_lower"],
        upper=arrays["reliability_upper"],
        level=description.reliability_level,
    )
    predictor.residual_quantiles_ = arrays["residual_quantiles"]
    predictor.far_distance_ = float(arrays["far_distance"][0])
    predictor.encoder_ = description.encoder
    predictor.provenance_ = description.provenance
    return predictor


def find_folder(source: str | Path) -> Path:
    """Finds the folder of a predictor, and downloads it where the Hub has it.

    Raises:
        PredictorError: There is no such folder, or the name is not one of the Hub.
        HubError: It cannot be downloaded.
    """
    text = str(source)
    if text.startswith(("hf-hub:", "hf_hub:")):
        named = _HUB.fullmatch(text)
        if named is None:
            raise PredictorError(
                f"'{text}' does not name a repository; write hf-hub:ORGANISATION/NAME@REVISION"
            )
        files = [download(named[1], name, revision=named[2]) for name in (DESCRIPTION_FILE, ARRAYS_FILE)]
        if files[0].parent != files[1].parent:
            # the branch moved between the two requests
            files = [
                download(named[1], name, revision=files[1].parent.name)
                for name in (DESCRIPTION_FILE, ARRAYS_FILE)
            ]
        return files[0].parent
    folder = Path(text.removeprefix("local-dir:"))
    if not folder.is_dir():
        raise PredictorError(f"{folder}: no such folder; give one that 'timm-mvhybrid fit' wrote")
    return folder


def arrays_of(predictor: ExpressionPredictor) -> dict[str, NDArray[Any]]:
    """Lists the arrays of a fitted predictor, as its file holds them."""
    model, reliability = predictor.model_, predictor.reliability_
    found = {
        "mean": model.mean,
        "scale": model.scale,
        "components": model.components,
        "variances": model.variances,
        "residual_variance": np.array([model.residual_variance]),
        "coefficients": model.coefficients,
        "intercept": model.intercept,
        "alpha": np.array([model.alpha]),
        "far_distance": np.array([predictor.far_distance_]),
        "residual_quantiles": predictor.residual_quantiles_,
        "reliability_by_study": reliability.by_study,
        "reliability_r": reliability.r,
        "reliability_lower": reliability.lower,
        "reliability_upper": reliability.upper,
    }
    # safetensors writes an array's memory as it lies, transposed or not
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> tuple[_Description, dict[str, NDArray[Any]]]:
    """Reads both files, and refuses what does not belong together."""
    file, arrays_file = folder / DESCRIPTION_FILE, folder / ARRAYS_FILE
    try:
        stated: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PredictorError(
            f"{file}: cannot be read as JSON ({getattr(error, 'strerror', None) or error}); {_COPY_AGAIN}"
        ) from error
    version = stated.get("format_version") if isinstance(stated, dict) else None
    if not isinstance(version, int) or version < 1:
        raise PredictorError(
            f"{file}: does not describe a predictor; give a folder that 'timm-mvhybrid fit' wrote"
        )
    if version > FORMAT_VERSION:
        raise PredictorError(
            f"{file}: has the format {version}, and this version of timm-mvhybrid reads up to {FORMAT_VERSION}; upgrade it"
        )
    files = stated.pop("files", None)
    del stated["format_version"]
    stated.pop("format", None)
    if not isinstance(files, dict) or set(files) != {ARRAYS_FILE}:
        raise PredictorError(f"{file}: must state the file {ARRAYS_FILE} and no other; {_COPY_AGAIN}")
    if not arrays_file.is_file():
        raise PredictorError(f"{arrays_file}: missing; {_COPY_AGAIN}")
    if file_sha256(arrays_file) != files[ARRAYS_FILE]:
        raise PredictorError(
            f"{arrays_file}: its sha256 is not the one that {DESCRIPTION_FILE} states, so one of them was damaged or "
            f"changed; {_COPY_AGAIN}"
        )
    try:
        with safe_open(arrays_file, framework="np") as opened:
            digest = (opened.metadata() or {}).get(_DIGEST)
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise PredictorError(f"{arrays_file}: cannot be read ({error}); {_COPY_AGAIN}") from error
    if digest != _digest(stated):
        raise PredictorError(
            f"{file}: is not the description that {ARRAYS_FILE} was written with, so it was changed; {_COPY_AGAIN}"
        )
    with as_predictor_errors():
        description: _Description = decode(_Description, stated, str(file))
    _check_shapes(arrays_file, description, arrays)
    return description, arrays


def _check_shapes(file: Path, description: _Description, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuses arrays that do not fit each other or the description, before anything is computed from them."""
    num_genes, num_studies = len(description.genes), len(description.studies)
    num_components, num_leading, dim = (
        len(arrays[name]) if name in arrays and arrays[name].ndim else 0
        for name in ("coefficients", "variances", "mean")
    )
    wanted: dict[str, tuple[int, ...]] = {
        "mean": (dim,),
        "scale": (dim,),
        "components": (num_components, dim),
        "variances": (num_leading,),
        "residual_variance": (1,),
        "coefficients": (num_components, num_genes),
        "intercept": (num_genes,),
        "alpha": (1,),
        "far_distance": (1,),
        "residual_quantiles": (NUM_STEPS + 1, num_genes),
        "reliability_by_study": (num_studies, num_genes),
        "reliability_r": (num_genes,),
        "reliability_lower": (num_genes,),
        "reliability_upper": (num_genes,),
    }
    unlike = sorted(set(wanted) ^ set(arrays))
    if unlike:
        verb = "lacks" if unlike[0] in wanted else "holds"
        raise PredictorError(f"{file}: {verb} the array '{unlike[0]}'; {_COPY_AGAIN}")
    for name, shape in wanted.items():
        found = arrays[name]
        dtype = np.float32 if name == "residual_quantiles" else np.float64
        if found.shape != shape or found.dtype != dtype or 0 in shape:
            raise PredictorError(
                f"{file}: the array '{name}' is {found.dtype} of shape {found.shape}, not {np.dtype(dtype)} of shape {shape}; "
                f"{_COPY_AGAIN}"
            )
        if not name.startswith("reliability") and not np.isfinite(found).all():
            raise PredictorError(f"{file}: the array '{name}' holds NaN or infinite values; fit again")
    if num_leading > num_components:
        raise PredictorError(
            f"{file}: the array 'variances' has {num_leading} of {num_components} components; {_COPY_AGAIN}"
        )
