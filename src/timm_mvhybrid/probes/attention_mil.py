"""Gated attention over the patches of a slide → probability of the positive label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from tyro.conf import Suppress, arg

from ..runtime.errors import EvaluationError
from .arrays import binary_vector, distinct_rows, finite_matrix
from .column_moments import ColumnMoments


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Training of the attention model.

    Attributes:
        hidden_dim: Width of the projection and of the attention.
        num_epochs: Passes over the training slides, one slide a step.
        learning_rate: Of AdamW, falling to zero along a cosine.
        weight_decay: Of AdamW.
        dropout: On the projected patches.
        max_patches: Patches drawn from a slide in a training step; all are used for scoring.
        seed: Seed of weights, order, dropout and drawing.
    """

    hidden_dim: int = 128
    num_epochs: int = 20
    learning_rate: float = 3e-4
    weight_decay: float = 1e-3
    dropout: float = 0.25
    max_patches: int = 4096
    # a command has one seed for all that it draws, and this is not its flag
    seed: Annotated[int, Suppress, arg(name="attention-seed")] = 0


class GatedAttention(nn.Module):
    """Projects patches, weighs them by gated attention, and classifies their weighted mean.

    logit = w · Σ a_i h_i,  a = softmax(v · (tanh(V h_i) ⊙ σ(U h_i))),  h = ReLU(P x).

    Source: Ilse, Tomczak and Welling, Attention-based Deep Multiple Instance Learning, ICML 2018, equations 7 and 9.

    Args:
        dim: Width of the embeddings.
        options: Widths and dropout.
    """

    def __init__(self, dim: int, options: AttentionOptions) -> None:
        super().__init__()
        width = options.hidden_dim
        self.project = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(options.dropout))
        self.content = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.classify = nn.Linear(width, 1)

    def forward(self, bag: torch.Tensor, log_counts: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Classifies one slide.

        Args:
            bag: (patches, dim).
            log_counts: Logarithm of how often each patch occurs, (patches, 1), for a bag of distinct patches.
        """
        hidden = self.project(bag)
        score = self.score(torch.tanh(self.content(hidden)) * torch.sigmoid(self.gate(hidden)))
        attention = torch.softmax(score + log_counts, dim=0)
        logit: torch.Tensor = self.classify((attention * hidden).sum(dim=0)).squeeze()
        return logit


def attention_mil(
    bags_train: Sequence[ArrayLike],
    y_train: ArrayLike,
    bags_test: Sequence[ArrayLike],
    options: AttentionOptions | None = None,
) -> NDArray[np.float64]:
    """Fits the attention model to training slides and scores others.

    Features are standardised by the training patches; both classes weigh alike. The same seed gives the same numbers,
    and the global random state is left as it was. Slides of equal patches in equal proportions get equal probabilities.

    Args:
        bags_train: Embeddings of each training slide, (patches, D).
        y_train: Whether each is positive, (slides,) bool or 0 and 1.
        bags_test: Embeddings of the slides to score.
        options: Training.

    Returns:
        Probability of the positive label for each test slide, float64.

    Raises:
        EvaluationError: If shapes do not fit, values are not finite, labels are coded otherwise, or all training slides
            have the same label.
    """
    options = options or AttentionOptions()
    train, test = (
        [finite_matrix(f"{name}[{index}]", bag, np.float32) for index, bag in enumerate(bags)]
        for name, bags in (("bags_train", bags_train), ("bags_test", bags_test))
    )
    positive = binary_vector("y_train", y_train, len(train), one="positive", zero="negative")
    if positive.all() or not positive.any():
        raise EvaluationError(f"all {len(train)} training slides have the same label; both are needed")
    widths = {bag.shape[1] for bag in (*train, *test)}
    if len(widths) > 1:
        raise EvaluationError(
            f"the bags have {', '.join(map(str, sorted(widths)))} features; they must agree"
        )
    moments = ColumnMoments.of(train)
    weight = {True: 0.5 / positive.mean(), False: 0.5 / (1 - positive.mean())}
    rng = np.random.default_rng(options.seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(options.seed)
        model = GatedAttention(train[0].shape[1], options)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.num_epochs * len(train))
        for _ in range(options.num_epochs):
            for index in rng.permutation(len(train)):
                bag = train[index]
                if len(bag) > options.max_patches:
                    bag = bag[rng.choice(len(bag), options.max_patches, replace=False)]
                label = bool(positive[index])
                logit = model(torch.from_numpy(moments.standardise(bag)))
                loss = nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(float(label)))
                optimizer.zero_grad()
                (weight[label] * loss).backward()
                optimizer.step()
                schedule.step()
    model.eval()
    logits = [_logit(model, bag, moments) for bag in test]
    return 1 / (1 + np.exp(-np.array(logits, dtype=np.float64)))


def _logit(model: GatedAttention, bag: NDArray[np.float32], moments: ColumnMoments) -> float:
    """Scores a slide by its distinct patches, and how often each occurs relative to the rarest.

    Slides of the same patches in the same proportions, in any order and number, get the same logit to the last bit and
    are ties of the AUROC, because the model is given the same numbers. Over the whole bags, sums of another length would
    round differently and put such slides in an order.
    """
    first, _, counts = distinct_rows(bag)
    log_counts = np.log(counts / np.gcd.reduce(counts)).astype(np.float32)[:, None]
    with torch.no_grad():
        return float(model(torch.from_numpy(moments.standardise(bag[first])), torch.from_numpy(log_counts)))
