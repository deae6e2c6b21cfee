import numpy as np
import pytest
from support.measured_cohorts import measured_sample

from timm_mvhybrid.cohorts import pathway_scores
from timm_mvhybrid.finetune.panels import build_panel, panels_of
from timm_mvhybrid.finetune.pathway_targets import score_pathways
from timm_mvhybrid.runtime.errors import DataError

GENES = [f"G{index:02d}" for index in range(20)]
SETS = {"Z": GENES[:6], "A": GENES[8:15], "far": [f"H{index}" for index in range(6)], "none": ["x"] * 5}


def counts(seed, num_genes=20):
    rng = np.random.default_rng(seed)
    found = rng.poisson(rng.gamma(1, 3, num_genes), (25, num_genes))
    found[2] = 0
    return found


def score(samples, training, sets=SETS, **options):
    panels = {
        name: (
            build_panel(name, [samples[i] for i in numbers], training[numbers], num_genes=5, grid=1)[0],
            numbers,
        )
        for name, numbers in panels_of(samples).items()
    }
    return score_pathways(samples, panels, training, sets, **options)


def test_scores_are_those_of_all_measured_genes_standardised_by_training_samples():
    parts = [counts(seed) for seed in range(3)]
    samples = [measured_sample(part, GENES, normalise="cpm") for part in parts]
    found = score(samples, np.array([True, False, True]))
    stacked = np.concatenate(parts)
    train = np.r_[0:25, 50:75]
    scores = pathway_scores(stacked, GENES, {name: SETS[name] for name in ("Z", "A")}, train=train)
    kept = train[scores.measured[train]]
    mean, std = scores.values[kept].mean(axis=0), scores.values[kept].std(axis=0)
    assert found.names == ("Z", "A")
    np.testing.assert_allclose(found.mean["P"], mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.std["P"], std, rtol=1e-6)
    for index, part in enumerate(np.split(scores.values, 3)):
        ok = np.isfinite(part)
        np.testing.assert_array_equal(found.measured[index], ok)
        assert not ok[2].any()
        expected = np.where(ok, (part - mean) / std, 0)
        np.testing.assert_allclose(found.values[index], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["mean_z", "ssgsea"])
def test_panels_that_measure_other_genes_share_the_sets_and_not_the_standardisation(method):
    other = [*GENES[:6], *(f"H{index}" for index in range(6)), *(f"K{index}" for index in range(8))]
    samples = [
        measured_sample(counts(0), GENES, normalise="cpm"),
        measured_sample(counts(1), other, panel="Q", area_um2=100.0),
    ]
    found = score(samples, np.ones(2, bool), method=method)
    assert found.names == ("Z", "A", "far")
    assert found.measured[0].any(axis=0).tolist() == [True, True, False]
    assert found.measured[1].any(axis=0).tolist() == [True, False, True]
    for values, measured in zip(found.values, found.measured, strict=True):
        assert (values[~measured] == 0).all()
        for column in np.flatnonzero(measured.any(axis=0)):
            kept = values[measured[:, column], column]
            assert abs(kept.mean()) < 1e-6
            assert kept.std() == pytest.approx(1, abs=1e-6)
    assert np.isnan(found.mean["P"][2])
    assert found.coverage["Q"][[0, 2]].tolist() == [1, 1]


def test_a_panel_that_can_score_nothing_is_reported_and_all_of_them_are_refused():
    strangers = [f"K{index}" for index in range(20)]
    samples = [
        measured_sample(counts(0), GENES, normalise="cpm"),
        measured_sample(counts(1), strangers, panel="Q", normalise="cpm"),
    ]
    found = score(samples, np.ones(2, bool))
    assert list(found.unscored) == ["Q"]
    assert not found.measured[1].any()
    with pytest.raises(DataError, match=r"would match in upper case: give `ignore_case=True`"):
        score(
            [measured_sample(counts(0), [gene.lower() for gene in GENES], normalise="cpm")], np.ones(1, bool)
        )
