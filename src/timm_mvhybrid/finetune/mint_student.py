"""MINT's student: a backbone with heads for prototypes, an ST token, and a head for each panel of genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ssl.student_teacher import Network
from .errors import FinetuneError
from .panels import Panel
from .st_model import STModel, read_features


class MintOutput(NamedTuple):
    """What the student makes of a batch; the first attributes are those of ``NetworkOutput``.

    Attributes:
        class_features: Class tokens of the global crops, (2B, D).
        class_scores: Scores of all crops, (2B + L·B, K).
        patch_scores: None.
        patch_factors: None.
        patch_loss: None.
        class_token: Class token of the whole patch, (B, D).
        patch_tokens: Its patch tokens, (B, N, D).
        st: Its ST token, (B, D).
        spots: Panel → predicted expression, standardised, (B, genes).
        cells: Panel → likewise of each cell of its grid, (B, grid², genes).
    """

    class_features: Tensor
    class_scores: Tensor
    patch_scores: None
    patch_factors: None
    patch_loss: None
    class_token: Tensor
    patch_tokens: Tensor
    st: Tensor
    spots: dict[str, Tensor]
    cells: dict[str, Tensor]


class MintStudent(Network):
    """A network that also reads whole patches, with an ST token, and predicts expression from it and from patch tokens.

    Its backbone and head have the teacher's names. Heads are linear, so that what is learned is learned by the tokens.

    Args:
        network: Backbone and head; taken over.
        panels: Panels by name.
        image_size_px: Side of the whole patches.
        st_start: First block with the ST token; see ``STModel``.
        st_writes: Whether attention may learn to see it.

    Raises:
        FinetuneError: The backbone cannot carry the token, or the patch tokens do not fit the cells of a panel.
    """

    def __init__(
        self,
        network: Network,
        panels: Mapping[str, Panel],
        *,
        image_size_px: int,
        st_start: int | None = None,
        st_writes: bool = False,
    ) -> None:
        # it checks the backbone, teaches the blocks, and draws the token; its parameters are this module's
        model = STModel(network.backbone, st_start, st_writes)
        super().__init__(network.backbone, network.dino_head)
        self.st_token, self.write_gates, self.st_start = model.st_token, model.write_gates, model.st_start
        grid = self.backbone.patch_embed.dynamic_feat_size((image_size_px, image_size_px))
        self.grid: tuple[int, int] = tuple(grid)
        dim = model.embed_dim
        self.cells_of: dict[str, int] = {}
        for name, panel in panels.items():
            if panel.grid is not None:
                if any(size % panel.grid for size in self.grid):
                    raise FinetuneError(
                        f"`crops.global_size_px` is {image_size_px}, of {grid[0]} × {grid[1]} patch tokens, which do not "
                        f"divide into the {panel.grid} × {panel.grid} cells of the panel {name!r}; take "
                        f"{panel.grid * self.backbone.patch_embed.patch_size[0]} px or a multiple of it"
                    )
                self.cells_of[name] = panel.grid
        # names of panels may have dots, names of modules may not
        self.panels = tuple(panels)
        self.spot_heads = nn.ModuleList([nn.Linear(dim, len(panel.genes)) for panel in panels.values()])
        self.token_heads = nn.ModuleList(
            [nn.Linear(dim, len(panels[name].genes)) for name in self.panels if name in self.cells_of]
        )
        for head in (*self.spot_heads, *self.token_heads):
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def forward(  # type: ignore[override]
        self, global_crops: Tensor, local_crops: Tensor | None = None, *, image: Tensor, **options: Any
    ) -> Any:
        """Computes scores of crops, and features and predictions of whole patches.

        Args:
            global_crops: (2B, 3, G, G), normalised, crop by crop.
            local_crops: (L·B, 3, l, l), likewise.
            image: Whole patches, (B, 3, G, G), normalised.
            **options: Those of ``Network.forward``, which have nothing to do without masked patches.

        Returns:
            A :class:`MintOutput`.
        """
        scored = super().forward(global_crops, local_crops, **options)
        features = self.features(image)
        spots, cells = self.predict(features)
        return MintOutput(
            scored.class_features,
            scored.class_scores,
            None,
            None,
            None,
            features["class"],
            features["patch"],
            features["st"],
            spots,
            # FSDP warns of outputs that are views
            {name: x.clone() for name, x in cells.items()},
        )

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Computes class, ST and patch features of whole patches, as ``STModel.features``."""
        return read_features(
            self.backbone,
            image,
            st_token=self.st_token,
            write_gates=self.write_gates,
            st_start=self.st_start,
        )

    def predict(self, features: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predicts standardised expression of patches and of their cells.

        Args:
            features: Of :meth:`features`.

        Returns:
            Panel → (B, genes), and panel → (B, grid², genes).
        """
        spots = {name: head(features["st"]) for name, head in zip(self.panels, self.spot_heads, strict=True)}
        cells = {
            name: head(pooled(features["patch"], self.grid, self.cells_of[name]))
            for name, head in zip(self.cells_of, self.token_heads, strict=True)
        }
        return spots, cells


def pooled(tokens: Tensor, grid: tuple[int, int], cells: int) -> Tensor:
    """Averages patch tokens over the cells of a coarser grid.

    Args:
        tokens: (batch, rows · columns, dim), row by row.
        grid: Rows and columns.
        cells: Cells along a side, which divides both.

    Returns:
        (batch, cells², dim), row by row.
    """
    rows, columns = grid
    parts = tokens.unflatten(1, (cells, rows // cells, cells, columns // cells))
    return torch.mean(parts, dim=(2, 4)).flatten(1, 2)
