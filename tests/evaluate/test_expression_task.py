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
import torch
from support.evaluation_goldens import hest_task_embeddings, reference, unpack_hest_task
from support.hest_tasks import write_studies, write_task

from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.data import DataError
from timm_mvhybrid.embed.baselines import COLOUR, MEAN, POSITION
from timm_mvhybrid.evaluate import (
    Backbone,
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
from timm_mvhybrid.evaluate.expression.tables import find_drops
from timm_mvhybrid.report import Result, result_from_json
from timm_mvhybrid.runtime.errors import OutputError

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
    summary = found.summary("fixed", "csv", "pcc")
    # saturated features, standardised, amplify rounding: other machines differ by as much
    assert summary.mean == pytest.approx(expected["pearson_mean"], abs=1e-3)
    assert summary.std == pytest.approx(expected["pearson_std"], abs=1e-3)
    folds = found.fold_values("fixed", "csv", "pcc")
    assert list(folds.values()) == pytest.approx(expected["mean_per_split"], abs=1e-3)
    for fold, genes in found.unit_values("fixed", "csv", "pcc").items():
        for gene, pcc in genes.items():
            assert pcc == pytest.approx(expected["per_gene"][gene][int(fold)], abs=1e-2)
    assert found.settings["panel_selected_on"] == "file"


def test_protocols_follow_the_data(task, studies, result):
    assert result.protocols == ("csv", "random", "loso")
    for protocol in result.protocols:
        assert result.models_of(protocol) == ("colours", "noise")
    loso = [fold for fold in result.folds if (fold.model, fold.protocol) == ("colours", "loso")]
    assert [(fold.name, fold.facts["test_samples"]) for fold in loso] == [
        ("a", ["S0", "S1"]), ("b", ["S2"]), ("c", ["S3"])
    ]  # fmt: skip
    assert [fold.num_test for fold in loso] == [48, 24, 24]
    assert result.arrays["studies"] == STUDIES
    assert "Study 'b' has a single sample, 'S2'." in result.notes


def test_embeddings_that_explain_the_genes_win(result):
    means = {(one.model, one.protocol): one.mean for one in result.summaries if one.metric == "pcc"}
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
    found = result.unit_values("colours", "loso", "pcc")["b"]
    assert list(found) == genes
    for name in ("pcc", "pcc10", "mse", "mae", "r2"):
        score = result.fold_values("colours", "loso", name)["b"]
        assert score == pytest.approx(getattr(expected, name), rel=1e-4)
    np.testing.assert_allclose(list(found.values()), expected.pcc_per_gene, rtol=1e-3)


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
        assert ("G11" in found.unit_values("m", "csv", "pcc")["2"]) == chosen
    assert [one.settings["panel_selected_on"] for one in (leaky, clean)] == ["all samples", "training folds"]


def test_drops_compare_random_folds_with_left_out_studies(result):
    drops = {(drop.model, drop.metric): drop for drop in find_drops(result)}
    for metric, sign in (("pcc", -1), ("mse", 1)):
        random, loso = (result.summary("colours", name, metric).mean for name in ("random", "loso"))
        assert drops["colours", metric].percent == pytest.approx(100 * sign * (loso - random) / random)
    assert drops["noise", "pcc"].percent is None or drops["noise", "pcc"].random > 0


def test_maps_hold_what_was_measured_and_predicted_in_the_test_part(task, result):
    maps = [one for one in result.arrays["maps"] if (one["model"], one["protocol"]) == ("colours", "loso")]
    assert {one["sample_id"] for one in maps} == set(STUDIES)
    one = next(one for one in maps if one["sample_id"] == "S3")
    sample = read_sample(open_task(task), "S3")
    np.testing.assert_allclose(
        one["measured"], np.log1p(sample.counts.toarray()[:, sample.genes.index(one["gene"])])
    )
    np.testing.assert_array_equal(np.stack([one["x"], one["y"]], axis=1), sample.spatial)
    pcc = result.unit_values("colours", "loso", "pcc")["c"][one["gene"]]
    assert np.corrcoef(one["measured"], one["predicted"])[0, 1] == pytest.approx(pcc, rel=1e-9)


def test_results_survive_the_file(tmp_path, result):
    result.write(tmp_path / "results.json")
    found = read_result(tmp_path)
    assert isinstance(found, Result)
    assert found.to_json() == result.to_json()
    assert found.scores[0] == result.scores[0]
    assert json.loads(result.to_json())["provenance"]["data"]["studies.csv"]
    assert not [path for path in tmp_path.iterdir() if path.name != "results.json"]


def test_a_file_that_is_no_result_is_named(tmp_path, result):
    with pytest.raises(EvaluationError, match=r"results.json: cannot be read"):
        read_result(tmp_path)
    for text, message in (
        ("{", "not JSON"),
        ("{}", "not a result"),
        (result.to_json().replace('"notes"', '"note"'), "missing or unknown: note, notes"),
        (result.to_json().replace('"schema": 2', '"schema": 99'), "another version"),
        (
            result.to_json().replace('"num_test": 48', '"num_test": "48"'),
            r"num_test is '48'; it must be of type int",
        ),
        (result.to_json().replace('"codes": [0', '"codes": [99', 1), "its table of scores is damaged"),
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
    pcc = {policy: one.fold_values("m", "csv", "pcc")["1"] for policy, one in found.items()}
    assert math.isnan(found["omit"].unit_values("m", "csv", "pcc")["1"]["G00"])
    assert [fold.facts["num_constant"] for fold in found["omit"].folds] == [0, 1, 0]
    assert pcc["omit"] == pytest.approx(1.5 * pcc["zero"])
    assert math.isnan(pcc["propagate"])
    assert math.isnan(found["propagate"].summary("m", "csv", "pcc").mean)
    # the mean that is reported is the middle of what is resampled
    zero = found["zero"].summary("m", "csv", "pcc")
    assert zero.interval.low <= zero.mean <= zero.interval.high
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
    assert "G00" not in {score.unit for score in found.scores}
    assert found.notes[0].startswith("1 genes are not measured in every sample")


def untouched():
    """A model that must not be asked for an embedding."""

    class Untouched(torch.nn.Module):
        num_features = head_hidden_size = 8
        num_prefix_tokens = 0

        def forward_features(self, images):
            raise AssertionError("a patch was embedded")

    return Backbone(model=Untouched(), name="untouched")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"probe": {"num_components": 256}},
            "protocol csv, fold 0, model untouched: 256 principal components .* take at most 8 ",
        ),
        ({"num_genes": 1000}, "protocol csv: .*1000"),
        ({"probe": {"alpha": "nested"}, "protocols": ("loso",)}, "needs at least two studies to train on"),
        ({"probe": {"num_folds": 1000}, "protocols": ("random",)}, "1000 folds of 96 rows"),
        ({"protocols": ("patient",)}, "column patient"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_patch_is_embedded(task, tmp_path, changes, message):
    two_studies = write_studies(tmp_path / "studies.csv", {"S0": "a", "S1": "a", "S2": "b", "S3": "b"})
    with pytest.raises(EvaluationError, match=message):
        evaluate_expression(task, [untouched()], options(tmp_path, studies=two_studies, **changes))


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_read(task, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cache: cannot be written"):
        evaluate_expression(task, [untouched()], options(tmp_path))


def test_components_that_were_not_asked_for_are_lowered_and_said(task, studies):
    found = evaluate_expression(
        task, [], options(studies=studies, probe={"num_components": "auto"}), embeddings={"m": colours(task)}
    )
    assert {fold.facts["num_components"] for fold in found.folds} == {6}
    assert (
        "loso: 6 principal components in place of HEST's 256, as many as the smallest train part, 48 spots, and the "
        "embeddings allow." in found.notes
    )
    wide = {name: np.repeat(matrix, 60, axis=1) for name, matrix in colours(task).items()}
    found = evaluate_expression(
        task,
        [],
        options(studies=studies, probe={"num_components": "auto"}, protocols=("loso",)),
        embeddings={"m": wide},
    )
    assert {fold.facts["num_components"] for fold in found.folds} == {48}


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


def test_embeddings_that_are_no_vectors_name_the_sample(task):
    flat = {name: matrix[:, 0] for name, matrix in colours(task).items()}
    with pytest.raises(
        EvaluationError, match=r"model m, sample 'S0': embeddings of shape \(24,\); they must be"
    ):
        evaluate_expression(
            task, [], options(num_genes=3, probe={"num_components": None}), embeddings={"m": flat}
        )


def test_protocols_that_the_data_do_not_allow_are_errors(task, tmp_path):
    for protocol, message in (
        ("loso", "give `studies=FILE`"),
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
    assert [fold.facts["test_samples"] for fold in found.folds] == [["S0", "S1"], ["S2"], ["S3"]]


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
    assert not list((tmp_path / "cache").rglob("*.h5"))


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
    errors = [process.communicate(timeout=240)[1] for process in ranks]
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


def test_baselines_are_models_and_stand_where_they_are_named(task, studies, tmp_path):
    names = [POSITION, "test_vit12", COLOUR, MEAN]
    chosen = options(
        tmp_path, studies=studies, protocols=("random", "loso"), probe={"num_components": "auto"}
    )
    found = evaluate_expression(task, [load_backbone(name) for name in names], chosen)
    assert [model.label for model in found.models] == names
    scores = {(one.model, one.protocol, one.metric): one.mean for one in found.summaries}
    assert np.isnan(scores[MEAN, "random", "pcc"])
    assert np.isfinite(scores[POSITION, "random", "pcc"])
    # the genes follow the colours
    assert scores[COLOUR, "random", "pcc"] > scores[POSITION, "random", "pcc"]
    # baselines lower the number of components silently
    assert "None" not in next(note for note in found.notes if "principal components" in note)
    facts = {fold.model: fold.facts["num_components"] for fold in found.folds}
    assert (facts[MEAN], facts[COLOUR], facts[POSITION]) == (None, 22, None)


@pytest.mark.parametrize("preset", ["hest", "intercept"])
def test_the_mean_is_that_of_the_train_part_whatever_the_preset(task, studies, tmp_path, preset):
    panel = tmp_path / "genes.json"
    panel.write_text('{"genes": ["G00", "G01"]}')
    chosen = options(tmp_path, studies=studies, protocols=("loso",), panel=panel, probe={"preset": preset})
    found = evaluate_expression(task, [load_backbone(MEAN)], chosen)
    samples = [read_sample(open_task(task), name) for name in STUDIES]
    measured = [
        np.log1p(one.counts.toarray()[:, [one.genes.index(gene) for gene in ("G00", "G01")]].astype(float))
        for one in samples
    ]
    errors = found.fold_values(MEAN, "loso", "mse")
    for study in "abc":
        test, train = (
            np.concatenate(
                [
                    one
                    for one, its in zip(measured, STUDIES.values(), strict=True)
                    if (its == study) is is_test
                ]
            )
            for is_test in (True, False)
        )
        expected = np.square(test - train.mean(axis=0)).mean()
        # the recipe solves in float32 to a tolerance of 1e-6
        assert errors[study] == pytest.approx(expected, rel=1e-4)


def test_positions_of_patches_without_coordinates_are_one_place(tmp_path):
    task = write_task(tmp_path, num_samples=2)
    for name in ("S0", "S1"):
        with h5py.File(task / "patches" / f"{name}.h5", "a") as file:
            del file["coords"]
    found = evaluate_expression(task, [load_backbone(POSITION)], options(tmp_path, protocols=("random",)))
    (model,) = found.models
    assert (model.label, model.weights, model.embedding_dim) == (POSITION, "none", 20)
