"""``analyse frequency``: what scans, whole models and tokens do to spatial frequencies, on real images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tyro.conf import arg

from ..runtime.errors import ParameterError
from ..runtime.provenance import collect_provenance
from .comparing import Values, compared, summarised
from .findings import Curves, Findings, Records
from .frozen import frozen_gain
from .jacobian import Orientation, grating, jacobian_gain
from .options import Advance, AnalysisOptions, silent
from .scan_records import tokens_of_scans
from .spectrum import token_spectrum
from .subjects import Instance, instances

_NOTES = (
    "Gains of gratings are ‖J v‖/‖v‖ of the whole model at each image, an exact derivative. Frequencies are cycles over the "
    "image's side; up to half a cycle a patch they are the tokens' response, above it the patch embedding's to texture.",
    "Rows, columns and diagonals are never averaged: scans run along the rows, and answer the others differently.",
    "Frozen gains are those of the scan alone, at the δ, B and C that it has on the images; with its skip D it looks flat, so "
    "that both are given. 'Total' is all that comes out, 'coherent' what comes out at the frequency that went in.",
    "Spectra of tokens: ring 0 is their mean (DC); high is what is left without it in rings of 4 or more cycles a grid, 0.83 "
    "for white noise on 16 × 16. The row of block −1 is the patch embedding, from which the blocks start.",
)


@dataclass(frozen=True, kw_only=True)
class FrequencyOptions(AnalysisOptions):
    """Models, images and gratings.

    Attributes:
        frequencies: Cycles of the gratings over the image's side.
        orientations: Along which gratings vary.
        num_omega: Frequencies of frozen gains, evenly from 0 to π rad a token.
    """

    frequencies: Annotated[tuple[float, ...], arg(metavar="CYCLES")] = (
        1.0,
        2.0,
        3.0,
        4.0,
        5.0,
        6.0,
        7.0,
        8.0,
    )
    orientations: tuple[Orientation, ...] = ("rows", "columns", "diagonal")
    num_omega: Annotated[int, arg(metavar="N")] = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frequencies or min(self.frequencies) < 0 or not self.orientations:
            raise ParameterError(
                f"`frequencies` is {self.frequencies}, `orientations` {self.orientations}; give at least one of each, of at "
                "least 0 cycles"
            )
        if self.num_omega < 1:
            raise ParameterError(f"`num_omega` is {self.num_omega}; it must be at least 1")


def analyse_frequency(options: FrequencyOptions, *, advance: Advance = silent) -> Findings:
    """Measures gains of gratings, frozen gains of scans and spectra of tokens.

    Args:
        options: Models, images and gratings.
        advance: Told of progress.

    Raises:
        EvaluationError: A model is not known.
        DataError: An image cannot be read.
    """
    subjects, pictures = options.open()
    collected = _Collected()
    records = []
    total = sum(options.seeds + subject.trained for subject in subjects)
    for number, instance in enumerate(instances(subjects, range(options.seeds), **options.size)):
        advance(instance.record.label, number, total)
        records.append(instance.record)
        images = pictures.input_of(instance.model, options.image_size_px)
        collected.gratings(instance, images, options, pictures.names)
        collected.spectra(instance, images)
        collected.scans(instance, images, np.linspace(0.0, np.pi, options.num_omega))
    advance("writing", total, total)
    values: Values = collected.values
    return Findings(
        analysis="frequency",
        title="What the models do to spatial frequencies",
        models=records,
        tables=(
            Records(
                name="comparisons",
                caption="Differences paired by image; intervals over images, 95 %. seeds_std: spread of the baseline's means "
                "over its random weights.",
                rows=compared(values),
            ),
            Records(
                name="summary",
                caption="Means over images and seeds; intervals over images, 95 %.",
                rows=summarised(values),
            ),
            Records(
                name="gratings",
                caption="Gain of each grating at each image.",
                rows=collected.rows,
                shown=False,
            ),
            Records(
                name="tokens",
                caption="Spectra of the tokens after each block; means over images.",
                rows=collected.token_rows,
            ),
            Records(
                name="scans",
                caption="Frozen gains: root mean square over images and channels, ω in rad a token; settled: fraction of the "
                "tokens after the transient, 0 where it lasts longer than half of them.",
                rows=collected.scan_rows,
                shown=False,
            ),
        ),
        charts=collected.charts(options),
        notes=(*_NOTES, f"Images: {len(pictures.images)}."),
        provenance=collect_provenance(seed=0, options=options, data=pictures.digests),
    )


class _Collected:
    """Numbers of all models, while they come in."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], dict[str, list[NDArray[np.float64]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.rows: list[dict[str, Any]] = []
        self.token_rows: list[dict[str, Any]] = []
        self.scan_rows: list[dict[str, Any]] = []

    def _known(self, instance: Instance) -> dict[str, list[NDArray[np.float64]]]:
        return self.values[instance.subject.label, instance.kind]

    def gratings(
        self, instance: Instance, images: Tensor, options: FrequencyOptions, names: tuple[str, ...]
    ) -> None:
        size = (int(images.shape[2]), int(images.shape[3]))
        asked = [(o, f) for o in options.orientations for f in options.frequencies]
        waves = torch.stack([grating(f, o, size, num_channels=images.shape[1]) for o, f in asked])
        gains = jacobian_gain(instance.model, images, waves)
        for (orientation, frequency), column in zip(asked, gains.T, strict=True):
            self._known(instance)[f"gain_{orientation}_{frequency:g}"].append(column)
            self.rows += [
                {
                    **_named(instance),
                    "image": name,
                    "orientation": orientation,
                    "cycles": frequency,
                    "gain": gain,
                }
                for name, gain in zip(names, column.tolist(), strict=True)
            ]
        low, high = min(options.frequencies), max(options.frequencies)
        if low < high:
            for orientation in options.orientations:
                ratio = gains[:, asked.index((orientation, high))] / gains[:, asked.index((orientation, low))]
                self._known(instance)[f"gain_{orientation}_{high:g}_over_{low:g}"].append(ratio)

    @torch.no_grad()
    def spectra(self, instance: Instance, images: Tensor) -> None:
        model = instance.model
        if not hasattr(model, "forward_intermediates"):
            return
        embedded: list[Tensor] = []
        handle = model.patch_embed.register_forward_hook(lambda _m, _i, out: embedded.append(out))
        try:
            maps = model.forward_intermediates(images, intermediates_only=True)
        finally:
            handle.remove()
        first = torch.cat(embedded)
        grid = maps[0].shape[-2:]
        first = (first if first.ndim == 4 else first.unflatten(1, tuple(grid))).permute(0, 3, 1, 2)
        for block, features in enumerate([first, *maps], start=-1):
            found = token_spectrum(features)
            measured = {
                "dc_share": found.dc_share,
                "high_share": found.high_share,
                "log_amplitude_drop": found.log_amplitude_drop,
            }
            self.token_rows.append(
                {
                    **_named(instance),
                    "block": block,
                    **{name: float(np.mean(v)) for name, v in measured.items()},
                }
            )
        for name, last in measured.items():
            self._known(instance)[f"last_block_{name}"].append(last)

    def scans(self, instance: Instance, images: Tensor, omega: NDArray[np.float64]) -> None:
        for block, (mixer, tokens) in tokens_of_scans(instance.model, images).items():
            found = frozen_gain(mixer, tokens, omega)
            self.scan_rows += [
                {
                    **_named(instance),
                    "block": block,
                    "omega": float(w),
                    **{
                        name: float(np.sqrt(np.square(getattr(found, name)[..., index]).mean()))
                        for name in ("total", "coherent", "total_without_skip", "coherent_without_skip")
                    },
                    "settled": float(found.settled.mean()),
                }
                for index, w in enumerate(omega)
            ]

    def charts(self, options: FrequencyOptions) -> tuple[Curves, ...]:
        """Draws gains over cycles by orientation, spectra over blocks, and the gain of the scans' states."""
        charts = [
            Curves(
                name=f"Gain of gratings along {orientation}",
                curves=_curves([r for r in self.rows if r["orientation"] == orientation], "cycles", "gain"),
                x_label="cycles over the image",
                y_label="‖J v‖/‖v‖",
                caption="Means over images, and over the seeds of random weights.",
            )
            for orientation in options.orientations
        ]
        for column, label in (
            ("dc_share", "share of DC"),
            ("high_share", "share of high frequencies"),
            ("log_amplitude_drop", "log amplitude, highest ring to ring 1"),
        ):
            charts.append(
                Curves(
                    name=f"Tokens: {label}",
                    curves=_curves(self.token_rows, "block", column),
                    x_label="block (−1: patch embedding)",
                    y_label=label,
                )
            )
        for column, label in (
            ("total_without_skip", "states alone, total"),
            ("coherent_without_skip", "states alone, coherent"),
        ):
            charts.append(
                Curves(
                    name=f"Frozen gain of the scans: {label}",
                    curves=_curves(self.scan_rows, "omega", column),
                    x_label="ω, rad a token",
                    y_label="gain",
                    logarithmic=True,
                    caption="Means over all scans of a model; the skip D, of about 1, is left out.",
                )
            )
        return tuple(charts)


def _named(instance: Instance) -> dict[str, Any]:
    return {"model": instance.subject.label, "weights": instance.kind, "seed": instance.seed}


def _curves(rows: list[dict[str, Any]], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[f"{row['model']}, {row['weights']}"][float(row[x])].append(row[y])
    return {
        name: [(at, float(np.mean(values))) for at, values in sorted(points.items())]
        for name, points in found.items()
    }
