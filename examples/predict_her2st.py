"""Expression maps on real tissue: five sections of Spatial Transcriptomics → a predictor → the sixth beside what was measured.

python examples/predict_her2st.py HER2ST

HER2ST is a folder with images/, counts/, spots/ and sections.json, as github.com/almaan/her2st spreads them. For each
section of --sections, a predictor of the 50 most variable genes is fitted on the other sections and predicts this one at
its spots. Written are the predictor, a page with maps of prediction, bounds and measurement over the section, a picture of
the best genes, and a table of r for each gene beside a predictor that sees 22 statistics of colour and contrast alone.

Each section counts as a study, because there are two patients in all. Where others of its patient were in the fit, as for
C6, that flatters everything alike; B4 is the only section of its patient, and has a tenth of the counts. What is printed
says which it is. The default encoder is tiny, with random weights: it shows how it works, not what can be reached; give
--model and --checkpoint of a pretrained one for that. Two minutes on two cores.
"""

import argparse
import csv
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import h5py
import matplotlib
import numpy as np
from PIL import Image

from timm_mvhybrid.cohorts.hest_layout import read_spots
from timm_mvhybrid.cohorts.st_layout import write_st_task
from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.embed.backbone import Backbone, load_backbone
from timm_mvhybrid.embed.colour_statistics import colour_statistics
from timm_mvhybrid.embed.embedding_cache import EmbeddingOptions, embed_models
from timm_mvhybrid.predict import ExpressionPredictor, Prediction
from timm_mvhybrid.predict.fitting import fit_expression
from timm_mvhybrid.predict.options import FitOptions
from timm_mvhybrid.predict.slide_page import slide_page
from timm_mvhybrid.predict.slide_prediction import PICTURE_PX, SlidePrediction
from timm_mvhybrid.probes.expression_metrics import expression_metrics
from timm_mvhybrid.runtime.atomic_file import write_file

NUM_DRAWN = 4
PATCH_UM = 112
SOURCE = "HER2ST: Andersson et al., Nat Commun 12, 6012 (2021), CC BY 4.0"


def main() -> int:
    """Fits, predicts, draws, and prints the tables."""
    options = parse()
    task = options.output / f"task_{options.size}px"
    if not (task / "studies.csv").exists():
        resolution = PATCH_UM / options.size
        write_st_task(
            options.data, task, study="HER2ST", patch_size_px=options.size, resolution_um_per_px=resolution
        )
    with (task / "studies.csv").open() as file:
        patient_of = {row["sample_id"]: row.get("patient", "unknown") for row in csv.DictReader(file)}
    missing = [name for name in options.sections if name not in patient_of]
    if missing:
        print(f"no section {missing[0]}; there are {', '.join(patient_of)}", file=sys.stderr)
        return 2
    for section in options.sections:
        found = leave_out(section, patient_of, task, options)
        write_file(options.output / f"{section}.html", slide_page(found.shown, found.columns, found.measured))
        draw(found, options.output / f"{section}.png")
        print_table(found, patient_of, options)
    return 0


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with images/, counts/, spots/ and sections.json")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/predict_her2st"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--sections", nargs="+", default=["B4", "C6"], help="sections to predict, each from all others"
    )
    parser.add_argument("--model", default="test_mvhybrid", help="encoder (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="file of its weights; random ones by default")
    parser.add_argument("--genes", type=int, default=50, help="most variable genes (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=224, help="side of the patches in px (default: %(default)s)"
    )
    return parser.parse_args()


@dataclass
class Found:
    """A section, what was predicted for it by features and by colours, and what was measured."""

    shown: SlidePrediction
    columns: np.ndarray
    measured: np.ndarray
    r: np.ndarray
    r_of_colours: np.ndarray


def leave_out(section: str, patient_of: dict[str, str], task: Path, options: argparse.Namespace) -> Found:
    """Fits on all sections but one, and predicts that one at its spots."""
    others = [name for name in patient_of if name != section]
    fold = fold_task(task, options.output / f"fit_without_{section}", others)
    backbone = load_backbone(options.model, checkpoint=options.checkpoint)
    embedding = EmbeddingOptions(cache=options.output / "cache", num_workers="auto")
    fit_options = FitOptions(studies=fold / "sections.csv", num_genes=options.genes, embedding=embedding)
    predictor = fit_expression(fold, backbone, fit_options)
    assert predictor is not None
    predictor.save(options.output / f"predictor_without_{section}", overwrite=True)

    sample = read_spots(
        section, *(task / kind for kind in (f"patches/{section}.h5", f"adata/{section}.h5ad"))
    )
    source = PatchH5Source(task / "patches" / f"{section}.h5")
    prediction = predictor.predict(features_of(source, backbone, embedding))
    by_colour = colours(predictor, prediction, fold, others, source)
    position = {gene: index for index, gene in enumerate(sample.genes)}
    columns = np.array([index for index, gene in enumerate(predictor.genes_) if gene in position])
    measured = np.full(prediction.mean.shape, np.nan, np.float32)
    wanted = [position[predictor.genes_[column]] for column in columns]
    measured[:, columns] = np.log1p(sample.counts[:, wanted].toarray())
    with warnings.catch_warnings():
        # sections have more pixels than Pillow expects of a picture
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(next((options.data / "images").glob(f"{section}.*")))
        size = image.size
        image.thumbnail((PICTURE_PX, PICTURE_PX))
    with h5py.File(source.path) as file:
        um_per_px = float(file["img"].attrs["pixel_size"])
    side = PATCH_UM / um_per_px
    shown = SlidePrediction(
        name=section,
        coords=source.coords,
        patch_size_level0=side,
        stride_level0=side,
        dimensions_px=size,
        um_per_px=um_per_px,
        picture=np.asarray(image.convert("RGB")),
        predictor=predictor,
        prediction=prediction,
        record={"section": section, "source": SOURCE, "fitted_on": others},
    )
    r, r_of_colours = (
        expression_metrics(measured[:, columns], found[:, columns]).pcc_per_gene
        for found in (prediction.mean, by_colour)
    )
    return Found(shown, columns, measured, r, r_of_colours)


def fold_task(task: Path, folder: Path, sections: list[str]) -> Path:
    """Makes a task of some sections, each a study of its own; files are linked, not copied."""
    for name in sections:
        for kind in (f"patches/{name}.h5", f"adata/{name}.h5ad"):
            (folder / kind).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / kind).exists():
                os.link(task / kind, folder / kind)
    write_file(
        folder / "sections.csv", "sample_id,study\n" + "".join(f"{name},{name}\n" for name in sections)
    )
    return folder


def features_of(source: PatchH5Source, backbone: Backbone, embedding: EmbeddingOptions) -> np.ndarray:
    """Embeds the patches of a section."""
    name = source.path.stem
    (record,), embedded = embed_models({name: source}, [backbone], embedding)
    return embedded[record.label][name]


def colours(
    predictor: ExpressionPredictor,
    prediction: Prediction,
    fold: Path,
    sections: list[str],
    source: PatchH5Source,
) -> np.ndarray:
    """Predicts the same genes from 22 statistics of colour and contrast, by the same regression."""

    def statistics(one: PatchH5Source) -> np.ndarray:
        return np.stack([colour_statistics(np.asarray(one[index])) for index in range(len(one))])

    samples = [
        read_spots(name, fold / f"patches/{name}.h5", fold / f"adata/{name}.h5ad") for name in sections
    ]
    targets = []
    for sample in samples:
        position = {gene: index for index, gene in enumerate(sample.genes)}
        targets.append(np.log1p(sample.counts[:, [position[gene] for gene in predictor.genes_]].toarray()))
    features = [statistics(PatchH5Source(fold / "patches" / f"{name}.h5")) for name in sections]
    studies = np.repeat(sections, [len(one) for one in features])
    baseline = ExpressionPredictor(num_components=None)
    baseline.fit(np.concatenate(features), np.concatenate(targets), studies=studies, genes=predictor.genes_)
    found: np.ndarray = baseline.predict(statistics(source)).mean
    assert found.shape == prediction.mean.shape
    return found


def draw(found: Found, file: Path) -> None:
    """Draws the genes with the largest r, measured above predicted, over the section."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    shown, best = found.shown, found.columns[np.argsort(-np.nan_to_num(found.r, nan=-1))[:NUM_DRAWN]]
    r_of = dict(zip(found.columns.tolist(), found.r.tolist(), strict=True))
    x, y = shown.centres.T * shown.picture_scale
    margin = 0.06 * np.ptp(x)
    height = 0.6 + 2.4 * (np.ptp(y) + 2 * margin) / (np.ptp(x) + 2 * margin)
    figure, axes = pyplot.subplots(
        2, len(best), figsize=(3.1 * len(best), 2 * height), squeeze=False, layout="constrained"
    )
    for column, gene in enumerate(best.tolist()):
        rows = (("measured", found.measured[:, gene]), ("predicted", shown.prediction.mean[:, gene]))
        for axis, (kind, values) in zip(axes[:, column], rows, strict=True):
            axis.imshow(shown.picture, alpha=0.6)
            spots = axis.scatter(x, y, c=values, s=18, cmap="viridis", linewidths=0)
            axis.set(
                xlim=(x.min() - margin, x.max() + margin),
                ylim=(y.max() + margin, y.min() - margin),
                xticks=[],
                yticks=[],
            )
            title = f"{shown.predictor.genes_[gene]}, {kind}"
            axis.set_title(title if kind == "measured" else f"{title}, r {r_of[gene]:.2f}", fontsize=10)
            figure.colorbar(
                spots, ax=axis, shrink=0.6, label="log1p counts" if column == len(best) - 1 else ""
            )
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def print_table(found: Found, patient_of: dict[str, str], options: argparse.Namespace) -> None:
    """Prints r of the best genes, means over all, and how often the intervals hold."""
    shown, predictor = found.shown, found.shown.predictor
    prediction, measured, columns = shown.prediction, found.measured, found.columns
    start = options.checkpoint.name if options.checkpoint else "random weights"
    same = [name for name in shown.record["fitted_on"] if patient_of[name] == patient_of[shown.name]]
    whose = (
        f"with {', '.join(same)} of the same patient, which flatters"
        if same
        else "no section of its patient among them"
    )
    print(f"\n{shown.name}, predicted from {len(shown.record['fitted_on'])} other sections, {whose}")
    print(f"{'gene':<12} {options.model + ' (' + start + ')':>32} {'in left-out sections':>22} {'colour':>8}")
    for index in np.argsort(-np.nan_to_num(found.r, nan=-1))[:10]:
        gene = columns[index]
        own = predictor.reliability_.r[gene]
        print(
            f"{predictor.genes_[gene]:<12} {found.r[index]:>32.3f} {own:>22.3f} {found.r_of_colours[index]:>8.3f}"
        )
    own = np.nanmean(predictor.reliability_.r[columns])
    means = np.nanmean(found.r), own, np.nanmean(found.r_of_colours)
    print(f"{f'mean of {len(columns)}':<12} {means[0]:>32.3f} {means[1]:>22.3f} {means[2]:>8.3f}")
    inside = (measured >= prediction.lower) & (measured <= prediction.upper)
    print(
        f"intervals of {predictor.level:.0%} hold {inside[:, columns].mean():.0%} of what was measured; "
        f"{prediction.far.mean():.0%} of the spots are far from the training data"
    )
    print(f"wrote {options.output / shown.name}.html and {shown.name}.png")


if __name__ == "__main__":
    sys.exit(main())
