"""Teacher + labelled patches → what its features tell of what is known of them, without a trace in the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..cohorts.cohort import ExpressionCohort, select_at_most
from ..cohorts.hest_layout import read_samples
from ..cohorts.labelled_images import open_images
from ..data import DataError, PatchH5Source, read_csv
from ..data.fitting import fit_image
from ..probes.expression_metrics import expression_metrics
from ..probes.logistic import accuracies
from ..probes.neighbours import knn_leave_out, knn_probe
from ..probes.ridge_folds import ridge_folds
from ..probes.splits import patient_folds, stripe_folds
from ..runtime.errors import EvaluationError, PretrainError
from ..ssl.crops import as_pixels
from ..training.measuring import embed_rows, on_first, undisturbed


class OnlineProbe:
    """Measures a backbone on a labelled set: nearest neighbours for classes, ridge regression for expression.

    On several ranks each embeds a part, with equal numbers of forward passes, and all get the same result.

    Args:
        path: The labelled set, see ``open_targets``.
        image_size_px: Side of the model's input in pixels; images are scaled until they cover it, and cropped.
        mean: Mean of the normalisation, RGB on 0 to 1.
        std: Standard deviation of the normalisation.
        batch_size: Images a forward pass.
        device: Where the model is.
        k: Nearest neighbours that vote.
        num_genes: Genes to predict.
        counts_layer: The layer of each h5ad that holds the counts, or ``raw``; None takes X.

    Raises:
        DataError: The set is incomplete; the message names file, line and remedy.
        EvaluationError: Nothing can be measured on it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        k: int = 20,
        num_genes: int = 50,
        counts_layer: str | None = None,
    ) -> None:
        self.targets = open_targets(path, k=k, num_genes=num_genes, counts_layer=counts_layer)
        self.image_size_px = image_size_px
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device).view(1, 3, 1, 1)

    @property
    def protocol(self) -> str:
        """How the numbers come about, in one line, for the records of the run."""
        return self.targets.protocol

    def __call__(
        self, model: nn.Module, features: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Embeds the set and measures the embeddings.

        Every rank has to call it. Modes of the modules and the states of random generators are as before afterwards.

        Args:
            model: The module whose modes are to be kept; in evaluation mode during the call.
            features: Normalised images (B, 3, H, W) → (B, D), by the model; None calls the model itself.

        Raises:
            PretrainError: An image cannot be read, or features are not finite.
            TimmMVHybridError: Features cannot be measured; the message says why.
        """
        with undisturbed(model, self.device):
            found = self._embed(features or model)
            return on_first(lambda: self._score(found), self.device)

    def _embed(self, features: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeds the whole set: (N, D) float32 on the CPU, on every rank."""

        def embed(pixels: Tensor) -> dict[str, Tensor]:
            images = pixels.to(self.device).float().div_(255).sub_(self._mean).div_(self._std)
            return {"features": features(images)}

        return embed_rows(len(self.targets), self.batch_size, self._read, embed)["features"]

    def _score(self, features: Tensor) -> dict[str, float]:
        if not torch.isfinite(features).all():
            raise PretrainError(f"{self.targets.path}: the probe's features hold NaN or infinite values")
        return self.targets.score(features.numpy())

    def _read(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Reads images as (B, 3, size, size) uint8; one that cannot be read is black, and named."""
        size = self.image_size_px
        pixels = torch.zeros(len(indices), 3, size, size, dtype=torch.uint8)
        errors = []
        for row, index in enumerate(indices):
            try:
                fitted = fit_image(self.targets[index], (size, size))
                pixels[row] = torch.from_numpy(as_pixels(fitted)).permute(2, 0, 1)
            except DataError as error:
                errors.append(" ".join(str(error).split()))
        return pixels, errors


_MAX_FOLDS = 10
_MAX_COMPONENTS = 256


class ClassTargets:
    """Images of known classes, told by their nearest neighbours.

    Args:
        path: Folder or table, see ``open_images``.
        k: Neighbours that vote, by their similarity; fewer where there are fewer.

    Raises:
        DataError: The set is incomplete, or has one patient only.
    """

    def __init__(self, path: Path, k: int = 20) -> None:
        self.path, self.k = path, k
        self.images = open_images(path)
        owners = self.images.patients
        self._fold = self.images.folds(2, 0)[0] if self.images.parts[0] else None
        self._owners = owners if owners[0] else None
        if self._fold is None and self._owners is not None and len(set(owners)) < 2:
            raise DataError(
                f"{path}: every image is of patient '{owners[0]}'; give several, or leave the column out"
            )

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images.source)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads one image as RGB."""
        return self.images.source[index]

    @property
    def protocol(self) -> str:
        """How the scores come about, in one line."""
        held_out = "each image left out" if self._owners is None else "each patient left out"
        if self._fold is not None:
            held_out = "test images by train images"
        return f"nearest neighbours, k = {self.k}, cosine, {held_out}, {len(self)} images"

    def score(self, features: NDArray[np.float32]) -> dict[str, float]:
        """Classifies every image that is asked for.

        Args:
            features: (N, D).
        """
        labels = truth = self.images.labels
        if self._fold is None:
            found = knn_leave_out(features, labels, self._owners, k=self.k, weights="similarity")
        else:
            train, test = self._fold
            truth = labels[test]
            k = min(self.k, len(train))
            found = knn_probe(features[train], labels[train], features[test], k=k, weights="similarity")
        return {f"knn_{name}": value for name, value in accuracies(truth, found.prediction).items()}


class ExpressionTargets:
    """Patches of spots with measured gene expression, told by HEST's ridge probe as in ``evaluate expression``.

    Whole patients are held out, in at most ten folds; a single one is cut into stripes.

    Args:
        path: Table of samples, see ``read_samples``.
        num_genes: Genes to predict, the most variable ones; fewer where fewer vary.
        counts_layer: The layer of each h5ad that holds the counts, or ``raw``; None takes X.

    Raises:
        DataError: The set is incomplete.
        EvaluationError: The samples share no gene that varies, or are one patient's and have too few spots, or spots
            at no known places.
    """

    def __init__(self, path: Path, num_genes: int = 50, counts_layer: str | None = None) -> None:
        self.path = path
        samples, patients = read_samples(path, counts_layer, option="monitor.probe_counts_layer")
        cohort = ExpressionCohort.of(samples, patients=patients)
        self.genes = select_at_most(
            [sample.counts for sample in samples], [sample.genes for sample in samples], num_genes
        )
        self.expression = cohort.log_counts(self.genes)
        owners = cohort.patient_of
        num_owners = len(np.unique(owners))
        self._held_out = "stripes of one patient" if num_owners == 1 else "patients"
        try:
            self._folds = (
                stripe_folds(cohort.spatial)
                if num_owners == 1
                else patient_folds(owners, min(num_owners, _MAX_FOLDS))
            )
        except EvaluationError as error:
            raise EvaluationError(
                f"{path}: {error}; give samples of a second patient, or patches with 'coords'"
            ) from error
        self._sources = [PatchH5Source(sample.patches) for sample in samples]
        self._patches = [
            (source, int(row))
            for source, sample in zip(self._sources, samples, strict=True)
            for row in sample.rows
        ]

    def __len__(self) -> int:
        """Returns the number of spots."""
        return len(self._patches)

    def __getitem__(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Reads the patch of one spot as RGB."""
        source, row = self._patches[index]
        return source[row]

    @property
    def protocol(self) -> str:
        """How the scores come about, in one line."""
        return (
            f"PCA + ridge, mean Pearson correlation of {len(self.genes)} genes, {self._held_out} held out, "
            f"{len(self)} spots"
        )

    def score(self, features: NDArray[np.float32]) -> dict[str, float]:
        """Predicts the spots that are held out, fold by fold.

        Args:
            features: (N, D).

        Returns:
            ``expression_pearson``, the mean over the folds of the mean over the genes; a gene that is constant, measured
            or predicted, counts as 0.
        """
        num_components = min(_MAX_COMPONENTS, features.shape[1], *(len(fold.train) for fold in self._folds))
        # by sums over spots, which follow the recipe without a randomised PCA: equal features have equal scores
        fitted = ridge_folds(
            features, self.expression, self._folds, num_components=num_components, solver="shared"
        )
        scores = [
            expression_metrics(self.expression[fold.test], one.prediction, "zero").pcc
            for fold, one in zip(self._folds, fitted, strict=True)
        ]
        return {"expression_pearson": float(np.mean(scores))}


def open_targets(
    path: str | Path, *, k: int = 20, num_genes: int = 50, counts_layer: str | None = None
) -> ClassTargets | ExpressionTargets:
    """Opens a labelled set; its kind is told from its content.

    Args:
        path: Images with classes, see ``open_images``; or a CSV with the columns patches and expression, see
            ``read_samples``.
        k: Nearest neighbours that vote.
        num_genes: Genes to predict.
        counts_layer: The layer of each h5ad that holds the counts, or ``raw``; None takes X.

    Raises:
        DataError: It is neither, or incomplete; the message names file, line and remedy.
        EvaluationError: Nothing can be measured on it.
    """
    path = Path(path)
    if path.is_dir():
        return ClassTargets(path, k)
    rows = read_csv(path, ())
    if not rows:
        raise DataError(f"{path}: holds no row below its header")
    columns = set(rows[0])
    if {"path", "label"} <= columns:
        return ClassTargets(path, k)
    if {"patches", "expression"} <= columns:
        return ExpressionTargets(path, num_genes, counts_layer)
    raise DataError(
        f"{path}: has the columns {', '.join(rows[0])}; it must have 'path' and 'label', or 'patches' and 'expression'"
    )
