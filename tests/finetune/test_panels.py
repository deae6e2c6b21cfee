import json

import numpy as np
import pytest
from support.measured_cohorts import measured_sample

from timm_mvhybrid.finetune.panels import build_panel
from timm_mvhybrid.runtime.errors import DataError


def build(*samples, training=None, num_genes=50, grid=2, name="P"):
    kept = np.ones(len(samples), bool) if training is None else np.array(training)
    return build_panel(name, samples, kept, num_genes=num_genes, grid=grid)


def drawn(seed, num_patches=30, num_genes=6, cells=None):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(2, 1, (num_patches,) + (() if cells is None else (cells,)) + (num_genes,))
    return rng.poisson(rate)


def test_targets_are_log_cpm_of_all_measured_genes_and_standardised_by_training_samples():
    counts = [drawn(seed) for seed in range(3)]
    counts[0][4] = 0
    samples = [
        measured_sample(values, name=f"S{i}", normalise="cpm", names=list("ABCDEF"))
        for i, values in enumerate(counts)
    ]
    panel, targets = build(*samples, training=[True, True, False])
    logs = [np.log1p(values / np.maximum(values.sum(axis=1, keepdims=True), 1) * 1e6) for values in counts]
    for found, expected in zip(targets, logs, strict=True):
        np.testing.assert_allclose(found.expression.toarray(), expected, rtol=2e-7, atol=0)
    fitted = np.concatenate([logs[0][np.arange(30) != 4], logs[1]])
    np.testing.assert_allclose(panel.mean, fitted.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(panel.std, fitted.std(axis=0), rtol=1e-6)
    assert not targets[0].measured[4]
    assert panel.num_training_patches == 59
    assert panel.unit.startswith("log1p counts per million")
    assert panel.genes == tuple("ABCDEF")


def test_small_panels_are_by_area_unless_asked_otherwise():
    counts = drawn(0)
    panel, (targets,) = build(measured_sample(counts, area_um2=500.0))
    assert panel.normalise == "area"
    np.testing.assert_allclose(targets.expression.toarray(), np.log1p(2.0 * counts), rtol=2e-7)
    many = np.tile(counts, 200)
    assert build(measured_sample(many))[0].normalise == "cpm"
    with pytest.raises(
        DataError, match=r"measures 6 genes; `normalise='area'` is the default below 1,000.*`spot_area_um2`"
    ):
        build(measured_sample(counts))


def test_cells_are_divided_by_their_area_or_by_the_patch_and_never_by_their_own_total():
    tokens = drawn(0, cells=4)
    tokens[3] = 0
    tokens[5, 1] = 0
    sample = measured_sample(None, tokens=tokens, area_um2=1000.0)
    panel, (targets,) = build(sample)
    assert panel.grid == 2
    found = targets.tokens.toarray().reshape(30, 4, 6)
    np.testing.assert_allclose(found, np.log1p(4.0 * tokens), rtol=2e-7)
    np.testing.assert_allclose(targets.expression.toarray(), np.log1p(tokens.sum(axis=1)), rtol=2e-7)
    kept = np.arange(30) != 3
    np.testing.assert_allclose(panel.token_mean, found[kept].mean(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(panel.token_std, found[kept].std(axis=(0, 1)), rtol=1e-6)
    sample = measured_sample(None, tokens=tokens, normalise="cpm")
    _, (targets,) = build(sample)
    total = np.maximum(tokens.sum(axis=(1, 2)), 1)[:, None, None]
    found = targets.tokens.toarray().reshape(30, 4, 6)
    np.testing.assert_allclose(found, np.log1p(tokens / total * 1e6), rtol=3e-7)


def test_genes_that_a_sample_does_not_measure_are_masked_and_leave_the_statistics_alone(tmp_path):
    first, second = drawn(0), drawn(1)
    file = tmp_path / "genes.json"
    file.write_text(json.dumps({"genes": ["F", "A", "B"]}))
    options = {"normalise": "cpm", "genes": file}
    samples = [
        measured_sample(first, list("ABCDEF"), **options),
        measured_sample(second[:, ::-1], list("EDCBAX"), **options),
    ]
    panel, targets = build(*samples)
    assert panel.genes == ("F", "A", "B")
    assert [part.has.tolist() for part in targets] == [[True] * 3, [False, True, True]]
    logs = np.log1p(first / first.sum(axis=1, keepdims=True) * 1e6)
    np.testing.assert_allclose(panel.mean[0], logs[:, 5].mean(), rtol=1e-6)
    # "A" is the last but one column of the second sample, which is turned round
    np.testing.assert_allclose(
        targets[1].expression.toarray()[:, 1], np.log1p(second[:, 1] / second.sum(axis=1) * 1e6), rtol=3e-7
    )
    file.write_text(json.dumps({"genes": ["A", "nowhere"]}))
    with pytest.raises(
        DataError, match=r"genes\.json: no training sample of the panel 'P' measures 'nowhere'"
    ):
        build(*samples)


def test_genes_that_do_not_vary_in_training_are_not_measured():
    counts = np.array([[5, 3, 2], [5, 1, 4], [5, 2, 3]])
    panel, (targets,) = build(measured_sample(counts, list("ABC"), normalise="cpm", genes=None), num_genes=3)
    assert panel.genes == ("B", "C"), "a gene that never varies is not chosen"
    tokens = counts[:, None]
    panel, (targets,) = build(measured_sample(None, list("ABC"), tokens=tokens, area_um2=1.0), grid=1)
    assert panel.genes == ("A", "B", "C")
    assert targets.has.tolist() == targets.token_has.tolist() == [False, True, True]
    assert panel.std[0] == 1


def test_the_most_dispersed_genes_are_chosen_from_training_alone():
    rng = np.random.default_rng(0)
    steady = rng.poisson(np.full((400, 20), 4.0))
    bursting = rng.poisson(4 * rng.gamma(0.5, 2, (400, 2)))
    rare = np.where(rng.random((400, 1)) < 0.02, 300, 0)  # in too few patches
    genes = [*(f"s{i}" for i in range(20)), "b0", "b1", "rare"]
    train = measured_sample(np.hstack([steady, bursting, rare]), genes, normalise="cpm")
    other = measured_sample(
        np.hstack([bursting[:, :1] * 40, steady[:, 1:], bursting, rare]), genes, normalise="cpm"
    )
    panel, _ = build(train, other, training=[True, False], num_genes=2)
    assert panel.genes == ("b0", "b1")
    panel, _ = build(measured_sample(np.hstack([steady, bursting, rare]), genes, normalise="cpm", genes=3))
    assert len(panel.genes) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalise": "area", "area_um2": 1.0}, "has `normalise` area, and cpm in P; make them the same"),
        ({"genes": 3}, "has `genes` 3, and None in P"),
    ],
)
def test_cohorts_of_one_panel_agree(change, message):
    first = measured_sample(drawn(0), normalise="cpm")
    with pytest.raises(DataError, match=message):
        build(first, measured_sample(drawn(1), **{"normalise": "cpm", **change}))


def test_panels_without_anything_to_predict_are_refused():
    with pytest.raises(DataError, match="have no gene in common"):
        build(
            measured_sample(drawn(0), list("ABCDEF"), normalise="cpm"),
            measured_sample(drawn(0), list("GHIJKL"), normalise="cpm"),
        )
    with pytest.raises(
        DataError, match="no gene of the panel 'P' is in 10% of the training patches and varies"
    ):
        build(measured_sample(np.ones((4, 3)), normalise="cpm"))
