from itertools import pairwise

import numpy as np
import pytest

from timm_mvhybrid.evaluate import EvaluationError, patient_folds, random_folds, study_folds
from timm_mvhybrid.probes.splits import stripe_folds


def check_partition(folds, num_rows):
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(num_rows))
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(num_rows))
        assert len(test) > 0


def test_random_folds_are_even_and_seeded():
    folds = random_folds(103, 10, seed=4)
    check_partition(folds, 103)
    assert {len(fold.test) for fold in folds} == {10, 11}
    again, other = random_folds(103, 10, seed=4), random_folds(103, 10, seed=5)
    assert all((a.test == b.test).all() for a, b in zip(folds, again, strict=True))
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(folds, other, strict=True))
    assert len(random_folds(np.zeros((20, 3)), 4)) == 4


def test_each_study_is_left_out_once_even_one_with_a_single_row():
    studies = np.array(["b", "a", "b", "c", "a"])
    folds = study_folds(studies)
    check_partition(folds, 5)
    assert [fold.name for fold in folds] == ["a", "b", "c"]
    assert folds[2].test.tolist() == [3]
    for fold in folds:
        assert set(studies[fold.test]) == {fold.name}
        assert fold.name not in studies[fold.train]


def test_a_single_study_cannot_be_left_out():
    with pytest.raises(EvaluationError, match="at least two studies, and there is 'x' only"):
        study_folds(["x", "x"])


def test_patients_are_never_split_and_classes_are_spread():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 20, 200)
    labels = patients < 8
    folds = patient_folds(patients, 4, seed=1, labels=labels)
    check_partition(folds, 200)
    for train, test in folds:
        assert not set(patients[train]) & set(patients[test])
        assert len({patient for patient in patients[test] if patient < 8}) == 2
    assert len(patient_folds(patients)) == 20


def test_impossible_numbers_of_folds_are_errors():
    with pytest.raises(EvaluationError, match="10 folds of 4 rows"):
        random_folds(4)
    with pytest.raises(EvaluationError, match="3 folds of 2 patients"):
        patient_folds(["p", "q", "q"], 3)
    with pytest.raises(EvaluationError, match="label 1 is NaN"):
        study_folds([0.0, np.nan])


def test_stripes_go_across_the_longer_side():
    rng = np.random.default_rng(0)
    coords = np.stack([rng.permutation(90) * 10.0, rng.uniform(0, 50, 90)], axis=1)
    folds = stripe_folds(coords)
    check_partition(folds, 90)
    assert {len(fold.test) for fold in folds} == {22, 23}
    ends = [(coords[fold.test, 0].min(), coords[fold.test, 0].max()) for fold in folds]
    assert all(last < first for (_, last), (first, _) in pairwise(ends))
    with pytest.raises(EvaluationError, match="all spots are at one place"):
        stripe_folds(np.zeros((90, 2)))
    with pytest.raises(EvaluationError, match="4 stripes of 7 spots"):
        stripe_folds(coords[:7])
