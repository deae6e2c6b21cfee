import json
import math
import os
import socket
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
from support.evaluation_goldens import hest_task_embeddings, reference, unpack_hest_task
from support.hest_tasks import write_studies, write_task

from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.data import DataError
from timm_mvhybrid.evaluate import (
    EmbeddingOptions,
    EvaluationError,
    ExpressionOptions,
    ProbeOptions,
    evaluate_expression,
    expression_metrics,
    load_backbone,
    read_result,
    ridge_probe,
    select_genes,
)
from timm_mvhybrid.report.results import ExpressionResult, result_from_json

STUDIES = {"S0": "a", "S1": "a", "S2": "b", "S3": "c"}


def colours(task):
    """Mean colours as embeddings: what the genes of these tasks follow."""
    found = {}
    for file in sorted((task / "patches").glob("*.h5")):
        with h5py.File(file) as content:
            pixels = content["img"][()].astype(np.float32)
        found[file.stem] = np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1)
    return found


def options(tmp_path=None, **changes):
    probe = {"num_components": 4, "num_folds": 3, "num_resamples": 200, **changes.pop("probe", {})}
    embedding = EmbeddingOptions(cache=tmp_path / "cache", device="cpu") if tmp_path else EmbeddingOptions()
    return ExpressionOptions(
        **{"num_genes": 6, "probe": ProbeOptions(**probe), "embedding": embedding, **changes}
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("hest"))


@pytest.fixture(scope="module")
def studies(task):
    return write_studies(task.parent / "studies.csv", STUDIES)


@pytest.fixture(scope="module")
def result(task, studies):
    noise = {name: np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32) for name in STUDIES}
    return evaluate_expression(
        task, [], options(studies=studies), embeddings={"colours": colours(task), "noise": noise}
    )


@pytest.mark.fixed_seed  # the embeddings of the golden are drawn
@pytest.mark.parametrize("solver", ["recipe", "shared"])
def test_the_small_hest_task_has_hests_scores(tmp_path, solver):
    task = unpack_hest_task(tmp_path)
    found = evaluate_expression(
        task,
        [],
        ExpressionOptions(panel="task", probe=ProbeOptions(num_components=64, solver=solver)),
        embeddings={"fixed": hest_task_embeddings(task)},
    )
    expected = reference()["e2e"]
    (scores,) = found.scores
    summary = scores.summary[0]
    # saturated features, standardised, amplify rounding: other machines differ by as much
    assert summary.mean == pytest.approx(expected["pearson_mean"], abs=1e-3)
    assert summary.std == pytest.approx(expected["pearson_std"], abs=1e-3)
    for fold, mean in zip(scores.folds, expected["mean_per_split"], strict=True):
        assert fold.pcc == pytest.approx(mean, abs=1e-3)
        for gene in fold.genes:
            assert gene.pcc == pytest.approx(expected["per_gene"][gene.gene][int(fold.name)], abs=1e-2)
    assert found.panel_selected_on == "file"


def test_protocols_follow_the_data(task, studies, result):
    assert [(score.protocol, score.model) for score in result.scores] == [
        (protocol, model) for protocol in ("csv", "random", "loso") for model in ("colours", "noise")
    ]
    loso = result.scores[4]
    assert [(fold.name, fold.test_samples) for fold in loso.folds] == [
        ("a", ("S0", "S1")), ("b", ("S2",)), ("c", ("S3",))
    ]  # fmt: skip
    assert [fold.num_test for fold in loso.folds] == [48, 24, 24]
    assert result.samples == STUDIES
    assert "Study 'b' has a single sample, 'S2'." in result.notes


def test_embeddings_that_explain_the_genes_win(result):
    means = {(score.model, score.protocol): score.summary[0].mean for score in result.scores}
    assert means["colours", "loso"] > 0.5
    assert abs(means["noise", "loso"]) < 0.2
    pcc = next(one for one in result.comparisons if one.metric == "pcc" and one.protocol == "loso")
    assert (pcc.model, pcc.baseline, pcc.num_folds) == ("noise", "colours", 3)
    assert pcc.difference == pytest.approx(means["noise", "loso"] - means["colours", "loso"], abs=1e-9)
    assert pcc.interval.high < 0


def test_a_fold_is_what_the_public_functions_give(task, result):
    samples = {name: read_sample(open_task(task), name) for name in STUDIES}
    features = colours(task)
    train, test = ["S0", "S1", "S3"], "S2"
    genes = select_genes([samples[n].counts for n in train], [samples[n].genes for n in train], "hvg", 6)

    def targets(name):
        return np.log1p(
            samples[name].counts.toarray()[:, [samples[name].genes.index(g) for g in genes]].astype(float)
        )

    prediction = ridge_probe(
        np.concatenate([features[n] for n in train]),
        np.concatenate([targets(n) for n in train]),
        features[test],
        num_components=4,
    )
    expected = expression_metrics(targets(test), prediction)
    fold = result.scores[4].folds[1]
    assert [one.gene for one in fold.genes] == genes
    for name in ("pcc", "pcc10", "mse", "mae", "r2"):
        assert getattr(fold, name) == pytest.approx(getattr(expected, name), rel=1e-4)
    np.testing.assert_allclose([one.pcc for one in fold.genes], expected.pcc_per_gene, rtol=1e-3)


def test_genes_are_selected_without_the_test_part_unless_asked_otherwise(tmp_path):
    task = write_task(tmp_path, num_samples=3)
    for name in ("S0", "S1", "S2"):
        file = task / "adata" / f"{name}.h5ad"
        data = anndata.read_h5ad(file)
        dense = data.X.toarray()
        # frequent in the test sample alone
        dense[:, 11] = np.where(np.arange(24) % 2, 4000 if name == "S2" else 0, 1)
        data.X = dense
        data.write_h5ad(file)
    leaky, clean = (
        evaluate_expression(
            task,
            [],
            options(select_on_all_samples=leak, panel="mean", protocols=("csv",), num_genes=3),
            embeddings={"m": colours(task)},
        )
        for leak in (True, False)
    )
    for found, chosen in ((leaky, True), (clean, False)):
        assert ("G11" in [one.gene for one in found.scores[0].folds[2].genes]) == chosen
    assert (leaky.panel_selected_on, clean.panel_selected_on) == ("all samples", "training folds")


def test_drops_compare_random_folds_with_left_out_studies(result):
    drops = {(drop.model, drop.metric): drop for drop in result.drops}
    means = {(s.model, s.protocol): {one.metric: one.mean for one in s.summary} for s in result.scores}
    for metric, sign in (("pcc", -1), ("mse", 1)):
        random, loso = means["colours", "random"][metric], means["colours", "loso"][metric]
        assert drops["colours", metric].percent == pytest.approx(100 * sign * (loso - random) / random)
    assert drops["noise", "pcc"].percent is None or drops["noise", "pcc"].random > 0


def test_maps_hold_what_was_measured_and_predicted_in_the_test_part(task, result):
    maps = [one for one in result.maps if one.model == "colours" and one.protocol == "loso"]
    assert {one.sample_id for one in maps} == set(STUDIES)
    one = next(one for one in maps if one.sample_id == "S3")
    sample = read_sample(open_task(task), "S3")
    np.testing.assert_allclose(
        one.measured, np.log1p(sample.counts.toarray()[:, sample.genes.index(one.gene)])
    )
    np.testing.assert_array_equal(np.stack([one.x, one.y], axis=1), sample.spatial)
    score = next(gene for gene in result.scores[4].folds[2].genes if gene.gene == one.gene)
    assert np.corrcoef(one.measured, one.predicted)[0, 1] == pytest.approx(score.pcc, rel=1e-9)


def test_results_survive_the_file(tmp_path, result):
    result.write(tmp_path / "results.json")
    found = read_result(tmp_path)
    assert isinstance(found, ExpressionResult)
    assert found.to_json() == result.to_json()
    assert found.scores[0] == result.scores[0]
    assert json.loads(result.to_json())["provenance"]["data"]["studies.csv"]
    assert not [path for path in tmp_path.iterdir() if path.name != "results.json"]


def test_a_file_that_is_no_result_is_named(tmp_path, result):
    with pytest.raises(EvaluationError, match=r"results.json: cannot be read"):
        read_result(tmp_path)
    for text, message in (
        ("{", "no JSON"),
        ("{}", "not a result"),
        (result.to_json().replace('"panel"', '"pane"'), "missing or unknown: pane, panel"),
        (result.to_json().replace('"schema": 1', '"schema": 99'), "another version"),
        (
            result.to_json().replace('"panel_size": 6', '"panel_size": "6"'),
            r"panel_size is '6'; it must be of type int",
        ),
    ):
        with pytest.raises(EvaluationError, match=message):
            result_from_json(text)


def test_a_constant_gene_has_no_correlation_and_is_reported(tmp_path):
    task = write_task(tmp_path, num_samples=3)
    data = anndata.read_h5ad(task / "adata" / "S1.h5ad")
    dense = data.X.toarray()
    dense[:, 0] = 7
    data.X = dense
    data.write_h5ad(task / "adata" / "S1.h5ad")
    panel = tmp_path / "genes.json"
    panel.write_text('{"genes": ["G00", "G01", "G02"]}')
    found = {
        policy: evaluate_expression(
            task,
            [],
            options(panel=panel, protocols=("csv",), probe={"nan_policy": policy}),
            embeddings={"m": colours(task)},
        )
        for policy in ("omit", "propagate", "zero")
    }
    folds = {policy: one.scores[0].folds[1] for policy, one in found.items()}
    assert math.isnan(folds["omit"].genes[0].pcc)
    assert folds["omit"].num_constant == 1
    assert folds["omit"].pcc == pytest.approx(1.5 * folds["zero"].pcc)
    assert math.isnan(folds["propagate"].pcc)
    assert math.isnan(found["propagate"].scores[0].summary[0].mean)
    assert "1 times a gene is constant in a fold" in found["omit"].notes[0]


def test_a_gene_missing_in_one_sample_is_an_error_of_a_list_and_left_out_of_a_selection(tmp_path):
    task = write_task(tmp_path, num_samples=3)
    file = task / "adata" / "S1.h5ad"
    anndata.read_h5ad(file)[:, 1:].copy().write_h5ad(file)
    panel = tmp_path / "genes.json"
    panel.write_text('{"genes": ["G00", "G01"]}')
    with pytest.raises(DataError, match=rf"{file}: lacks the gene 'G00' of genes.json \(1 missing\)"):
        evaluate_expression(task, [], options(panel=panel), embeddings={"m": colours(task)})
    found = evaluate_expression(task, [], options(num_genes=11), embeddings={"m": colours(task)})
    assert "G00" not in {gene.gene for gene in found.scores[0].folds[0].genes}
    assert found.notes[0].startswith("1 genes are not measured in every sample")


def test_fewer_spots_than_components_names_protocol_and_remedy(task):
    with pytest.raises(
        EvaluationError, match=r"protocol csv, model m: 256 principal components .* take at most 6 "
    ):
        evaluate_expression(task, [], options(probe={"num_components": 256}), embeddings={"m": colours(task)})


def test_embeddings_with_nan_name_sample_and_barcode(task):
    features = colours(task)
    features["S2"][5, 1] = np.nan
    barcode = read_sample(open_task(task), "S2").barcodes[5]
    with pytest.raises(
        EvaluationError, match=rf"model m, sample 'S2', barcode '{barcode}': the embedding holds NaN"
    ):
        evaluate_expression(task, [], options(), embeddings={"m": features})


def test_embeddings_that_are_not_one_for_each_patch_name_the_sample(task):
    features = colours(task)
    for found, number in (({**features, "S1": features["S1"][1:]}, 23), ({"S0": features["S0"]}, 0)):
        with pytest.raises(EvaluationError, match=f"model m, sample 'S1': {number} embeddings of 24 patches"):
            evaluate_expression(task, [], options(), embeddings={"m": found})


def test_protocols_that_the_data_do_not_allow_are_errors(task, tmp_path):
    for protocol, message in (
        ("loso", "give --studies"),
        ("patient", "column patient"),
        ("kfold", "unknown protocol"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate_expression(task, [], options(protocols=(protocol,)), embeddings={"m": colours(task)})
    one_study = write_studies(tmp_path / "s.csv", dict.fromkeys(STUDIES, "a"))
    with pytest.raises(EvaluationError, match="at least two studies, and there is 'a' only"):
        evaluate_expression(
            task, [], options(studies=one_study, protocols=("loso",)), embeddings={"m": colours(task)}
        )


def test_patients_are_left_out_one_at_a_time(task, tmp_path):
    patients = {"S0": "p", "S1": "p", "S2": "q", "S3": "r"}
    file = write_studies(tmp_path / "s.csv", STUDIES, patients)
    found = evaluate_expression(
        task, [], options(studies=file, protocols=("patient",)), embeddings={"m": colours(task)}
    )
    assert [fold.test_samples for fold in found.scores[0].folds] == [("S0", "S1"), ("S2",), ("S3",)]


def test_embeddings_are_computed_once(tmp_path):
    task = write_task(tmp_path, num_samples=3)
    chosen = options(tmp_path, protocols=("csv",))
    seen = []
    first, again = (
        evaluate_expression(
            task, [load_backbone("test_vit12")], chosen, on_batch=lambda name, report: seen.append(name)
        )
        for _ in range(2)
    )
    assert seen == ["S0", "S1", "S2"]
    assert (first.models[0].num_cached, again.models[0].num_cached) == (0, 72)
    assert 0 < first.models[0].seconds
    assert again.models[0].seconds == 0
    assert again.scores == first.scores
    # what changes is the patches of one sample, the weights, the transform: these alone are computed again
    with h5py.File(task / "patches" / "S1.h5", "r+") as file:
        file["img"][0] = 255 - file["img"][0]
    seen.clear()
    evaluate_expression(
        task, [load_backbone("test_vit12")], chosen, on_batch=lambda name, report: seen.append(name)
    )
    assert seen == ["S1"]
    evaluate_expression(
        task, [load_backbone("test_vit12", seed=1)], chosen, on_batch=lambda name, _: seen.append(name)
    )
    assert seen == ["S1", "S0", "S1", "S2"]


def test_data_are_checked_before_anything_is_embedded(tmp_path):
    task = write_task(tmp_path, num_samples=2)
    file = task / "adata" / "S1.h5ad"
    anndata.read_h5ad(file)[1:].copy().write_h5ad(file)
    with pytest.raises(DataError, match=r"S1.h5ad: barcode 'S1-\d+' of S1.h5 is missing"):
        evaluate_expression(task, [load_backbone("test_vit12")], options(tmp_path))
    assert not (tmp_path / "cache").exists()


def test_damaged_files_of_the_cache_are_computed_again(tmp_path):
    task = write_task(tmp_path, num_samples=2)
    chosen = options(tmp_path, protocols=("csv",))
    first = evaluate_expression(task, [load_backbone("test_vit12")], chosen)
    cut, other = sorted((tmp_path / "cache").rglob("*.h5"))
    cut.write_bytes(cut.read_bytes()[:500])
    with h5py.File(other, "r+") as file:
        file["embeddings"][3] = np.nan
    again = evaluate_expression(task, [load_backbone("test_vit12")], chosen)
    assert again.models[0].num_cached == 0
    assert again.scores == first.scores


def test_no_model_and_models_given_twice_are_errors(task, tmp_path):
    with pytest.raises(EvaluationError, match="no model to evaluate"):
        evaluate_expression(task, [])
    with pytest.raises(EvaluationError, match=r"model 'test_vit12 \(random\)' is given twice"):
        evaluate_expression(task, [load_backbone("test_vit12")] * 2, options(tmp_path))


RANK_SCRIPT = """
import json, os, sys
from pathlib import Path
from timm_mvhybrid.evaluate import *
task, folder, seen = sys.argv[1], Path(sys.argv[2]), []
found = evaluate_expression(
    task, [load_backbone("test_vit12")],
    ExpressionOptions(panel="mean", num_genes=6, protocols=("csv",),
                      probe=ProbeOptions(num_components=4, num_resamples=200),
                      embedding=EmbeddingOptions(cache=folder / "shared", device="cpu")),
    on_batch=lambda name, report: seen.append(name))
(folder / ("seen" + os.environ["RANK"])).write_text(json.dumps(seen))
if found is not None:
    found.write(folder / "results.json")
"""


@pytest.mark.distributed
def test_two_ranks_share_the_samples_and_find_the_same(tmp_path):
    task = write_task(tmp_path, num_samples=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(2):
        # what torchrun sets, without the time its own process takes to start
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [sys.executable, "-c", RANK_SCRIPT, str(task), str(tmp_path)]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=200)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    seen = [json.loads((tmp_path / f"seen{rank}").read_text()) for rank in range(2)]
    assert sorted(seen[0] + seen[1]) == ["S0", "S1", "S2"]
    assert all(seen)
    alone = evaluate_expression(
        task, [load_backbone("test_vit12")], options(tmp_path, panel="mean", protocols=("csv",))
    )
    together = read_result(tmp_path)
    assert together.scores == alone.scores
    assert together.models[0].num_cached == 0
    assert not list((tmp_path / "shared").rglob("*.tmp"))
