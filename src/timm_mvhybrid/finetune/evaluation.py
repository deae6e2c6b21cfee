"""Encoder + held-out patches → what fine-tuning did: expression by a probe, drift, retrieval, pathways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..probes.drift import linear_cka, mean_cosine
from ..probes.expression_metrics import expression_metrics
from ..probes.matching import counterpart_ranks
from ..probes.ridge_folds import ridge_folds
from ..runtime.errors import PatchError
from ..ssl.crops import whole_patch
from ..training.measuring import embed_rows, on_first, undisturbed
from ..training.objective import Evaluation
from .config import ProbeConfig
from .data import FinetuneData
from .training_data import normalise, targets_of

Features = Callable[[Tensor, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Normalised images (B, 3, H, W) and their targets → "class", (B, D), "patch", (B, N, D), and whatever else is measured:
"st", (B, D); "head/<panel>", (B, genes), standardised; "image" and "pathway", (B, E), and "scores", (B, sets)."""
Arrays = dict[str, NDArray[np.float32]]

_NEIGHBOURS = (1, 5)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rows:
    """Measured patches of one panel.

    Attributes:
        panel: Its name.
        genes: Columns of the genes that are probed.
        train: Rows of the patches that the probe is fitted on.
        held_out: Rows of the patches that it predicts, by sample.
        expression: Of both, standardised by training patches, (train rows + held-out rows, genes).
    """

    panel: str
    genes: NDArray[np.int64]
    train: NDArray[np.int64]
    held_out: tuple[NDArray[np.int64], ...]
    expression: NDArray[np.float64]


class MolecularProbe:
    """Measures an encoder in the middle of its fine-tuning, always on the same patches.

    A ridge regression by HEST's recipe (PCA, ridge), fitted on patches of the training samples, predicts the expression
    of held-out ones, from class token, ST token, and both side by side, and from the class token of the frozen encoder.
    Pearson's r is the mean over genes, then over held-out samples, then over panels; a gene that is constant, measured
    or predicted, counts as 0. Drift is the mean cosine and the linear CKA between features of held-out patches and those
    of the frozen encoder.

    Args:
        data: The cohorts; some of their samples are held out.
        config: How much is measured.
        image_size_px: Side of the patches in px, as the encoder is trained on.
        mean: Mean of the normalisation, RGB on 0 to 1.
        std: Standard deviation of the normalisation.
        batch_size: Patches of a batch on each process.
        device: Where the encoder is.
    """

    def __init__(
        self,
        data: FinetuneData,
        config: ProbeConfig,
        *,
        image_size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.data, self.config, self.device = data, config, device
        self.image_size_px, self.batch_size = image_size_px, batch_size
        self._mean, self._std = tuple(mean), tuple(std)
        self._train, self._held_out, self._panels = _choose(data, config)
        self._frozen: tuple[Arrays, Arrays] | None = None

    @property
    def dataset(self) -> str:
        """On what is measured, in a few words."""
        split = self.data.split
        return f"{len(self._held_out)} held-out patches, {split.by}-disjoint ({len(split.groups)} held out)"

    @property
    def protocol(self) -> str:
        """How, in one line."""
        num_genes = " and ".join(str(len(rows.genes)) for rows in self._panels)
        return (
            f"expression by PCA + ridge fitted on {len(self._train)} patches of training samples, mean Pearson correlation of "
            f"{num_genes} genes a held-out sample; drift from the frozen encoder; retrieval among all held-out patches"
        )

    @property
    def is_frozen(self) -> bool:
        """Whether the frozen encoder's features are known."""
        return self._frozen is not None

    def freeze(self, model: nn.Module, features: Features) -> None:
        """Embeds all patches by the frozen encoder, with which later ones are compared; every process calls it.

        Args:
            model: The module whose modes are to be kept.
            features: See ``Features``.
        """
        with undisturbed(model, self.device):
            self._frozen = self._embed(features)

    def __call__(self, model: nn.Module, features: Features) -> dict[str, float]:
        """Measures an encoder; every process calls it. What is learned does not notice.

        Args:
            model: The module whose modes are to be kept; in evaluation mode during the call.
            features: See ``Features``.

        Returns:
            Scores by name; correlations first.

        Raises:
            PretrainError: A patch cannot be read.
            EvaluationError: Features are not finite.
        """
        with undisturbed(model, self.device):
            found = self._embed(features)
            return on_first(lambda: self._scores(*found), self.device)

    def evaluation(self, scores: Mapping[str, float], first: Sequence[str]) -> Evaluation:
        """Describes scores for the records of the run.

        Args:
            scores: Of a call.
            first: Names of scores, of which the first one that is there judges checkpoints.
        """
        order = [*[name for name in first if name in scores], *scores]
        return Evaluation(
            scores={name: scores[name] for name in dict.fromkeys(order)},
            dataset=self.dataset,
            protocol=self.protocol,
            recorded=tuple(name for name in scores if "/" not in name),
        )

    def _embed(self, features: Features) -> tuple[Arrays, Arrays]:
        """Embeds patches of training samples, by class and ST token, and held-out ones, by all that there is."""
        return (
            self._embed_places(self._train, features, ("class", "st")),
            self._embed_places(self._held_out, features, None),
        )

    def _embed_places(
        self, places: Sequence[tuple[int, int]], features: Features, wanted: tuple[str, ...] | None
    ) -> Arrays:
        def read(rows: Sequence[int]) -> tuple[tuple[Tensor, dict[str, Tensor]], list[str]]:
            size = self.image_size_px
            images = torch.zeros(len(rows), 3, size, size, dtype=torch.uint8)
            errors = []
            for row, index in enumerate(rows):
                number, patch = places[index]
                try:
                    images[row] = whole_patch(self.data.samples[number].source[patch], size)
                except PatchError as error:
                    errors.append(" ".join(str(error).split()))
            return (images, self.data.targets_of([places[index] for index in rows])), errors

        def embed(batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
            images, targets = batch
            given = normalise(images, self._mean, self._std, self.device)
            found = dict(features(given, targets_of(targets, self.device)))
            tokens = found.pop("patch")
            if wanted is None:
                chosen = torch.from_numpy(_evenly(tokens.shape[1], self.config.num_tokens))
                found["patch"] = tokens[:, chosen.to(tokens.device)]
                if self.data.pathways is not None:
                    found |= {name: targets[name] for name in ("pathways", "pathways_measured")}
            return {
                name: value.to(self.device)
                for name, value in found.items()
                if wanted is None or name in wanted
            }

        embedded = embed_rows(len(places), self.batch_size, read, embed)
        return {name: value.numpy() for name, value in embedded.items()}

    def _scores(self, train: Arrays, held_out: Arrays) -> dict[str, float]:
        assert self._frozen is not None
        frozen_train, frozen = self._frozen
        pairs = {"class": (train["class"], held_out["class"])}
        if "st" in held_out:
            pairs["st"] = (train["st"], held_out["st"])
            pairs["class_st"] = (
                np.concatenate([train["class"], train["st"]], axis=1),
                np.concatenate([held_out["class"], held_out["st"]], axis=1),
            )
        pairs["frozen"] = (frozen_train["class"], frozen["class"])
        by_panel = {
            name: {rows.panel: self._expression(rows, *pair) for rows in self._panels}
            for name, pair in pairs.items()
        }
        scores = {f"expression_{name}": float(np.mean(list(of.values()))) for name, of in by_panel.items()}
        heads = {
            rows.panel: self._head(rows, held_out[f"head/{rows.panel}"])
            for rows in self._panels
            if f"head/{rows.panel}" in held_out
        }
        if heads:
            scores["expression_head"] = float(np.mean(list(heads.values())))
        if "scores" in held_out:
            scores |= _pathway_scores(held_out)
        for name, dim in (("class", 1), ("patch", 2)):
            now, then = (arrays[name].reshape(-1, arrays[name].shape[-1]) for arrays in (held_out, frozen))
            assert dim == held_out[name].ndim - 1
            scores |= {f"{name}_cosine": mean_cosine(now, then), f"{name}_cka": linear_cka(now, then)}
        if len(self._panels) > 1:
            for name, of in by_panel.items():
                scores |= {f"{panel}/expression_{name}": value for panel, value in of.items()}
        return scores

    def _expression(self, rows: _Rows, train: NDArray[np.float32], held_out: NDArray[np.float32]) -> float:
        features = np.concatenate([train[rows.train], held_out[np.concatenate(rows.held_out)]])
        num_train = len(rows.train)
        fold = (np.arange(num_train), np.arange(num_train, len(features)))
        num_components = min(self.config.num_components, num_train, features.shape[1])
        # by sums over patches, which need no randomised PCA: equal features have equal scores
        (fitted,) = ridge_folds(
            features, rows.expression, [fold], num_components=num_components, solver="shared"
        )
        return _mean_correlation(rows, fitted.prediction)

    def _head(self, rows: _Rows, predicted: NDArray[np.float32]) -> float:
        return _mean_correlation(rows, predicted[np.concatenate(rows.held_out)][:, rows.genes])


def _mean_correlation(rows: _Rows, prediction: NDArray[Any]) -> float:
    """Averages the correlation over genes, then over samples; prediction has a row for each held-out patch."""
    measured = rows.expression[len(rows.train) :]
    ends = np.cumsum([len(part) for part in rows.held_out])
    parts = zip(
        np.split(measured, ends[:-1]), np.split(np.asarray(prediction, np.float64), ends[:-1]), strict=True
    )
    return float(np.mean([expression_metrics(y, p, "zero").pcc for y, p in parts]))


def _pathway_scores(held_out: Arrays) -> dict[str, float]:
    """Correlates predicted pathway scores, and retrieves each patch's own among those of all held-out patches."""
    measured = held_out["pathways_measured"] > 0
    correlations = []
    for column in np.flatnonzero(measured.sum(axis=0) > 1):
        rows = measured[:, column]
        known, predicted = (held_out[name][rows, column][:, None] for name in ("pathways", "scores"))
        correlations.append(expression_metrics(known, predicted, "zero").pcc)
    asked = measured.any(axis=1)
    ranks = np.zeros(0, dtype=np.int64)
    if asked.any():
        ranks = counterpart_ranks(held_out["image"][asked], held_out["pathway"][asked])
    found = {"pathway_pearson": float(np.mean(correlations)) if correlations else 0.0}
    for k in _NEIGHBOURS:
        found[f"retrieval_at_{k}"] = float((ranks < k).mean()) if len(ranks) else 0.0
    # what guessing finds
    return {**found, "retrieval_chance_at_1": 1 / max(len(ranks), 1)}


def _choose(
    data: FinetuneData, config: ProbeConfig
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[_Rows]]:
    """Chooses patches to fit on and patches to predict, (sample, patch) each, and the genes of each panel."""
    train: list[tuple[int, int]] = []
    held_out: list[tuple[int, int]] = []
    found = []
    for name, panel in data.panels.items():
        own = [number for number, targets in enumerate(data.targets) if targets.panel.name == name]
        fitted = _measured(
            data, [number for number in own if not data.split.held_out[number]], config.max_train
        )
        asked = _measured(
            data, [number for number in own if data.split.held_out[number]], config.max_validation
        )
        genes = _genes(data, panel.std, [number for number, _ in (*fitted, *asked)], config.num_genes)
        numbers = np.array([number for number, _ in asked])
        # a correlation needs two patches of a sample
        samples = [number for number in dict.fromkeys(numbers.tolist()) if (numbers == number).sum() > 1]
        if samples and fitted and len(genes):
            rows = [np.flatnonzero(numbers == number) for number in samples]
            chosen = [asked[row] for row in np.concatenate(rows)]
            expression = np.concatenate([_expression(data, place, genes) for place in (*fitted, *chosen)])
            mean, std = panel.mean[genes], panel.std[genes]
            found.append(
                _Rows(
                    panel=name,
                    genes=genes,
                    train=np.arange(len(train), len(train) + len(fitted)),
                    held_out=tuple(row + len(held_out) for row in rows),
                    expression=((expression - mean) / std).astype(np.float64),
                )
            )
        train += fitted
        held_out += asked
    return train, held_out, found


def _measured(data: FinetuneData, numbers: Sequence[int], most: int) -> list[tuple[int, int]]:
    places = [
        (number, patch)
        for number in numbers
        for patch in np.flatnonzero(data.samples[number].measured).tolist()
    ]
    return [places[index] for index in _evenly(len(places), most)]


def _genes(
    data: FinetuneData, std: NDArray[np.float32], numbers: Sequence[int], most: int
) -> NDArray[np.int64]:
    """Takes the most variable genes of those that vary and that all samples measure."""
    has = np.logical_and.reduce([data.targets[number].has for number in dict.fromkeys(numbers)])
    known = np.flatnonzero(has)
    return np.sort(known[np.argsort(-std[known], kind="stable")[:most]])


def _expression(data: FinetuneData, place: tuple[int, int], genes: NDArray[np.int64]) -> NDArray[np.float32]:
    number, patch = place
    found: NDArray[np.float32] = data.targets[number].expression[[patch]][:, genes].toarray()
    return found


def _evenly(number: int, most: int) -> NDArray[np.int64]:
    """Takes at most so many indices, evenly."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))
