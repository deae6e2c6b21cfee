"""A generated cohort of eight studies → a predictor → new studies, plain and in another stain: what do its intervals cover?

Draws a phantom, embeds its patches, and fits two predictors of expression: one with the penalty that leaving studies out
chooses (nested), one with the weak penalty of HEST's recipe. Then draws studies that neither has seen, twice: stained as
differently as the eight are among themselves, and far more differently. Prints for each how many spots lie within the
intervals that aim at 80 %, and how many patches the distance calls far from the training data; draws both as a picture.
The slide of one new study becomes a page with a map of each gene, as `timm-mvhybrid predict` makes it.

    python examples/predict_phantom.py --output outputs/predict_phantom
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from timm_mvhybrid.cohorts.hest_writer import write_sample
from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.embed.backbone import Backbone
from timm_mvhybrid.evaluate import EmbeddingOptions, embed_models, load_backbone
from timm_mvhybrid.predict import ExpressionPredictor, FitOptions, SlideOptions, fit_expression, predict_slide
from timm_mvhybrid.report.drawing import chart_style
from timm_mvhybrid.runtime.atomic_file import write_file
from timm_mvhybrid.synthetic import MARK, TASK, PhantomOptions, draw_sample, write_phantom
from timm_mvhybrid.synthetic.sample import cohort_genes

STRONG_SHIFT = 4.0
"""Differences of stain and scanner between shifted studies, in multiples of those between the studies of the fit."""
PENALTIES = {"nested": "nested", "recipe": None}
"""Penalties as `--alpha` names them."""


@dataclass(frozen=True)
class NewStudies:
    """Features and measured expression of studies that no predictor has seen."""

    name: str
    features: np.ndarray
    expression: np.ndarray
    studies: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """How one predictor fares on new studies: for each spot, which of its genes are covered, and how far its patch is."""

    penalty: str
    new: NewStudies
    covered: np.ndarray
    distance: np.ndarray
    far: np.ndarray


def draw_new_studies(
    name: str,
    options: PhantomOptions,
    num_studies: int,
    folder: Path,
    backbone: Backbone,
    embedding: EmbeddingOptions,
) -> NewStudies:
    """Draws studies that follow those of the fit, writes them, and embeds their patches."""
    genes = cohort_genes(options).names
    sources, counts, studies = {}, [], []
    for study in range(options.num_studies, options.num_studies + num_studies):
        for number in range(options.num_samples):
            sample = draw_sample(options, study, number)
            patches, _ = write_sample(
                folder,
                sample.sample_id,
                patches=sample.patches,
                coords=sample.coords,
                barcodes=sample.barcodes,
                counts=sample.counts,
                genes=genes,
                spatial=sample.centres,
                attributes={
                    "pixel_size": sample.scanner.um_per_px,
                    "downsample": 0.5 / sample.scanner.um_per_px,
                },
                uns={"generated": MARK},
            )
            sources[sample.sample_id] = PatchH5Source(patches)
            counts.append(sample.counts)
            studies += [sample.study] * len(sample.counts)
    _, embedded = embed_models(sources, [backbone], embedding)
    (features,) = ([by_sample[sample] for sample in sources] for by_sample in embedded.values())
    return NewStudies(name, np.concatenate(features), np.log1p(np.concatenate(counts)), np.array(studies))


def try_out(penalty: str, predictor: ExpressionPredictor, new: NewStudies, genes: list[str]) -> Outcome:
    """Predicts new studies and looks what was measured."""
    found = predictor.predict(new.features)
    measured = new.expression[:, [genes.index(gene) for gene in predictor.genes_]]
    covered = (found.lower <= measured) & (measured <= found.upper)
    return Outcome(penalty, new, covered, found.distance, found.far)


def table_of(outcomes: list[Outcome]) -> Table:
    """Lists what was covered, of all patches and of those that are near and far."""
    table = Table(
        "penalty", "new studies", "covered", "near patches", "far patches", "far", title="intervals of 80 %"
    )
    for one in outcomes:
        parts = [one.covered[rows].mean() if rows.any() else np.nan for rows in (~one.far, one.far)]
        shown = [
            f"{value:.1%}" if value == value else "–"
            for value in (one.covered.mean(), *parts, one.far.mean())
        ]
        table.add_row(one.penalty, one.new.name, *shown)
    return table


@chart_style()
def draw(outcomes: list[Outcome], level: float, file: Path) -> None:
    """Draws every new study: how far its patches are, and how many of its values are covered."""
    from matplotlib.figure import Figure

    penalties = list(PENALTIES)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, len(penalties), sharex=True, sharey=True)
    looks = {"plain": ("o", "#0b7285"), "shifted stain": ("^", "#d9480f")}
    for axis, penalty in zip(axes, penalties, strict=True):
        axis.axhspan(level - 0.05, level + 0.05, color="#e9ecef", zorder=0)
        axis.axhline(level, color="#868e96", linewidth=1)
        axis.axvline(1, color="#868e96", linewidth=1, linestyle=":")
        for one in (one for one in outcomes if one.penalty == penalty):
            marker, colour = looks[one.new.name]
            for study in np.unique(one.new.studies):
                rows = one.new.studies == study
                axis.plot(
                    np.median(one.distance[rows]),
                    one.covered[rows].mean(),
                    marker,
                    color=colour,
                    markersize=8,
                    label=one.new.name if study == one.new.studies[0] else None,
                )
        axis.set_title(f"penalty: {penalty}", fontsize=11)
        axis.set_xlabel("distance to the training data, median of a study (1 = far)")
        axis.set_ylim(0, 1)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("covered by intervals of 80 %")
    axes[0].legend(frameon=False, loc="lower left")
    figure.suptitle("New studies of a generated cohort; nothing here was measured", fontsize=11)
    figure.savefig(file, dpi=144)


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/predict_phantom"),
        help="folder of cohort, predictors and picture",
    )
    parser.add_argument("--model", default="mvhybrid_tiny_patch16_256", help="name of a timm model")
    parser.add_argument("--studies", type=int, default=8, help="studies of the fit (default: 8)")
    parser.add_argument("--new-studies", type=int, default=4, help="studies to predict (default: 4)")
    parser.add_argument("--spots", type=int, default=48, help="spots of each study's sample (default: 48)")
    parser.add_argument("--genes", type=int, default=120, help="genes (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cohort (default: 0)")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(
        "The cohort is generated and the weights are random (seed 0): what follows shows what intervals and distance mean, "
        "and says nothing about tissue.\n"
    )

    options = PhantomOptions(
        num_studies=given.studies,
        num_samples=1,
        num_spots=given.spots,
        num_genes=given.genes,
        seed=given.seed,
    )
    cohort = Path(
        write_phantom(
            given.output / "cohort",
            options,
            overwrite=True,
            on_sample=lambda done, total: console.print(f"drew study {done} of {total}"),
        ).output
    )
    genes = list(cohort_genes(options).names)
    (cohort / "genes.txt").write_text("\n".join(genes) + "\n", encoding="utf-8")
    backbone = load_backbone(given.model, seed=0)
    embedding = EmbeddingOptions(cache=given.output / "embeddings", batch_size=16)
    predictors = {}
    for penalty, alpha in PENALTIES.items():
        fitted = fit_expression(
            cohort / TASK,
            backbone,
            FitOptions(
                studies=cohort / "studies.csv", genes=cohort / "genes.txt", alpha=alpha, embedding=embedding
            ),
        )
        if fitted is None:  # under torchrun, the first rank alone fits
            return
        fitted.save(given.output / f"predictor_{penalty}", overwrite=True)
        predictors[penalty] = fitted
        told = fitted.reliability_
        console.print(
            f"penalty {penalty} ({fitted.alpha_:g}): r = {np.nanmean(told.r):.2f} in left-out studies, "
            f"{told.predictable.sum()} of {len(genes)} genes predictable"
        )

    outcomes = []
    for name, drawn in (("plain", options), ("shifted stain", replace(options, image_shift=STRONG_SHIFT))):
        console.print(f"drawing {given.new_studies} new studies: {name}")
        folder = given.output / name.replace(" ", "_")
        new = draw_new_studies(name, drawn, given.new_studies, folder, backbone, embedding)
        outcomes += [try_out(penalty, predictor, new, genes) for penalty, predictor in predictors.items()]
    console.print(table_of(outcomes))
    picture = given.output / "coverage.png"
    draw(outcomes, 0.8, picture)
    console.print(f"picture: {picture}", soft_wrap=True)

    unseen = draw_sample(options, given.studies, 0)
    slide = given.output / f"{unseen.sample_id}.tif"
    write_file(slide, unseen.slide_file)
    predicted = predict_slide(
        slide,
        predictors["nested"],
        given.output / "maps",
        # the scanners of the cohort differ, and patches of the coarser ones were enlarged for the fit, too
        SlideOptions(batch_size=16, cache=given.output / "embeddings", enlarge=True),
        backbone=backbone,
        overwrite=True,
    )
    console.print(
        f"page: {given.output / 'maps' / slide.stem}.html ({predicted.num_patches} patches)", soft_wrap=True
    )


if __name__ == "__main__":
    main()
