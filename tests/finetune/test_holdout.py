import numpy as np
import pytest
from support.measured_cohorts import measured_sample

from timm_mvhybrid.finetune.holdout import hold_out
from timm_mvhybrid.runtime.errors import DataError


def samples(*facts, num_patches=10):
    return [
        measured_sample(np.ones((number, 3)), name=f"S{index}", study=study, patient=patient, panel=panel)
        for index, (study, patient, panel, number) in enumerate(
            (*fact, *("", "P", num_patches)[len(fact) - 1 :]) for fact in facts
        )
    ]


def test_studies_are_held_out_where_there_are_several_and_patients_otherwise():
    studies = hold_out(samples(("A", "1"), ("A", "2"), ("B", "3"), ("C", "4")))
    assert studies.by == "study"
    patients = hold_out(samples(("A", "1"), ("A", "1"), ("A", "2"), ("A", "3")))
    assert patients.by == "patient"
    assert patients.held_out.sum() in (1, 2)
    assert patients.held_out[0] == patients.held_out[1]


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_whole_and_neither_few_nor_most(seed):
    facts = [(f"study{index % 7}", str(index)) for index in range(21)]
    found = hold_out(samples(*facts), seed=seed, fraction=0.2)
    of = np.array([study for study, _ in facts])
    assert set(of[found.held_out]) == set(found.groups)
    assert not set(of[found.held_out]) & set(of[~found.held_out])
    assert len(found.groups) == 2, "no more than the fraction asks for"
    np.testing.assert_array_equal(hold_out(samples(*facts), seed=seed, fraction=0.2).held_out, found.held_out)


def test_the_choice_depends_on_the_seed():
    facts = [(f"study{index}",) for index in range(10)]
    assert len({hold_out(samples(*facts), seed=seed).groups for seed in range(10)}) > 3


def test_of_two_groups_the_small_one_is_held_out():
    found = hold_out(samples(("A", "1", "P", 30), ("A", "1", "P", 30), ("A", "2", "P", 20)))
    assert found.groups == ("2",)
    # both are more than half of their panel, which must keep something to train on
    other = hold_out(samples(("A", "1", "P", 50), ("A", "2", "P", 50)))
    assert len(other.groups) == 1


def test_every_panel_keeps_samples_to_train_on():
    facts = [("A", "", "P"), ("B", "", "P"), ("C", "", "Q"), ("D", "", "R")]
    for seed in range(6):
        assert set(hold_out(samples(*facts), seed=seed).groups) <= {"A", "B"}
    with pytest.raises(
        DataError, match=r"no study can be held out .C. without taking all samples of the panel 'Q'"
    ):
        hold_out(samples(*facts), groups=["C"])
    with pytest.raises(DataError, match="no study can be held out without taking all samples of the panel"):
        hold_out(samples(("A", "", "P"), ("B", "", "Q")))


def test_named_groups_are_held_out():
    facts = [("A", "1"), ("A", "2"), ("B", "3")]
    assert hold_out(samples(*facts), groups=["A"]).held_out.tolist() == [True, True, False]
    assert hold_out(samples(*facts), groups=["2"], split="patient").held_out.tolist() == [False, True, False]
    with pytest.raises(DataError, match="`hold_out` names the study '2'; known are A, B"):
        hold_out(samples(*facts), groups=["2"])


def test_nothing_is_held_out_on_request_alone():
    found = hold_out(samples(("",), ("",)), split="none")
    assert (found.by, found.held_out.tolist()) == ("none", [False, False])
    with pytest.raises(DataError, match="`split` is 'none'"):
        hold_out(samples(("A",)), split="none", groups=["A"])


@pytest.mark.parametrize(
    ("facts", "split", "message"),
    [
        (
            [("",), ("A",)],
            "auto",
            r"P.studies\.csv: missing.*columns sample_id, study, patient.*`split='none'`",
        ),
        (
            [("A",), ("A",)],
            "auto",
            r"studies\.csv: the column study has 'A' only, and there is no column patient",
        ),
        ([("A", "1"), ("A", "1")], "auto", r"the column patient has '1' only, so none can be held out"),
        (
            [("A", "1"), ("A", "2")],
            "study",
            r"the column study has 'A' only, and `split` is 'study'; give `split='patient'`",
        ),
        ([("A",), ("B",)], "patient", r"studies\.csv: there is no column patient"),
    ],
)
def test_what_would_leak_is_refused_with_table_and_column(facts, split, message):
    with pytest.raises(DataError, match=message):
        hold_out(samples(*facts), split=split)


@pytest.mark.parametrize("fraction", [0, 1, np.nan])
def test_the_fraction_is_one(fraction):
    with pytest.raises(DataError, match="`validation_fraction` is"):
        hold_out(samples(("A",), ("B",)), fraction=fraction)
