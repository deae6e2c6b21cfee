import numpy as np
import pandas as pd
import pytest

from timm_mvhybrid.evaluate import (
    AttentionOptions,
    EvaluationError,
    attention_mil,
    concordance_index,
    linear_probe,
)
from timm_mvhybrid.probes.arrays import binary_vector, labels_vector
from timm_mvhybrid.probes.cox import cox_risks, log_rank_p_value

YES = np.array([True, False, True, True, False, True, False, False])
TIME = np.arange(8) + 1.0
X = np.random.default_rng(0).normal(size=(8, 3))
TINY = AttentionOptions(hidden_dim=2, num_epochs=1)

USERS = {
    "concordance_index": ("event", lambda values: concordance_index(values, TIME, X[:, 0]).concordance),
    "cox_risks": ("event", lambda values: cox_risks(X, values, TIME, X)[1]),
    "log_rank_p_value": ("event", lambda values: log_rank_p_value(values, TIME, YES)),
    "log_rank_p_value, group": ("group", lambda values: log_rank_p_value(YES, TIME, values)),
    "attention_mil": ("y_train", lambda values: attention_mil(list(X[:, None]), values, list(X[:, None]), TINY)),
}  # fmt: skip

TAKEN = {
    "integers": YES.astype(int),
    "unsigned": YES.astype(np.uint8),
    "floats": YES.astype(np.float32),
    "a list": YES.tolist(),
    "a column": YES[:, None],
    "objects": YES.astype(object),
    "mixed objects": np.array([True, 0, 1.0, np.True_, 0.0, 1, False, np.int8(0)], dtype=object),
    "a series": pd.Series(YES),
    "pandas' boolean": pd.Series(YES, dtype="boolean"),
    "pandas' integers": pd.Series(YES.astype(int), dtype="Int64"),
}

REFUSED = {
    "R's 1 and 2": (YES + 1, "row 0 is 2"),
    "text of digits": (np.where(YES, "1", "0"), "row 0 is '1'"),
    "text of booleans": (np.where(YES, "True", "False"), "row 0 is 'True'"),
    "objects of text": (np.where(YES, "1", "0").astype(object), "row 0 is '1'"),
    "alive and dead": (np.where(YES, "dead", "alive").tolist(), "row 0 is 'dead'"),
    "bytes": (np.where(YES, b"1", b"0"), "row 0 is b'1'"),
    "-1 for no": (np.where(YES, 1, -1), "row 1 is -1"),
    "-1 as float": (np.where(YES, 1.0, -1.0), r"row 1 is -1\.0"),
    "competing risks": (np.array([0, 1, 0, 1, 0, 2, 0, 0]), "row 5 is 2"),
    "probabilities": (np.where(YES, 0.9, 0.1), r"row 0 is 0\.9"),
    "complex": (YES.astype(complex), "row 0 is"),
    "NaN": (np.where(YES, 1.0, np.nan), "label 1 is NaN or missing"),
    "a list with None": ([True, None, *YES.tolist()[2:]], "label 1 is NaN or missing"),
    "pandas' NA": (pd.Series([True, None, *YES.tolist()[2:]], dtype="boolean"), "label 1 is NaN or missing"),
    "years": (np.array([2, *YES.astype(int)[1:]], dtype="datetime64[Y]"), "row 0 is"),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("coding", TAKEN)
def test_booleans_and_0_and_1_give_the_same_numbers(user, coding):
    _, compute = USERS[user]
    np.testing.assert_array_equal(compute(TAKEN[coding]), compute(YES))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("coding", REFUSED)
def test_other_codings_are_refused_by_value(user, coding):
    name, compute = USERS[user]
    values, message = REFUSED[coding]
    with pytest.raises(EvaluationError, match=f"^{name}: {message}"):
        compute(values)


def test_the_message_says_what_0_and_1_mean():
    with pytest.raises(
        EvaluationError, match=r"neither 1 \(dead\) nor 0 \(alive\); give booleans: compare with"
    ):
        binary_vector("event", [1, 2], one="dead", zero="alive")
    with pytest.raises(EvaluationError, match="event: must be 3 labels, not an array of shape"):
        binary_vector("event", [1, 0], 3, one="dead", zero="alive")


@pytest.mark.parametrize(
    "missing", [None, np.nan, np.float32("nan"), float("nan"), pd.NA, pd.NaT], ids=lambda value: type(value).__name__
)  # fmt: skip
@pytest.mark.parametrize("make", [list, lambda labels: np.array(labels, dtype=object), pd.Series])
def test_missing_labels_are_refused_and_not_taken_for_a_class(missing, make):
    with pytest.raises(EvaluationError, match=r"^y: label 2 is NaN or missing; leave its row out"):
        labels_vector("y", make(["a", "b", missing, "a"]))


def test_labels_of_two_kinds_are_refused():
    with pytest.raises(EvaluationError, match=r"^y_train: some labels are strings and others are not"):
        linear_probe(X, np.array([1, "b"] * 4, dtype=object), X)


def test_labels_of_one_kind_stay_as_they_are():
    for labels in (["a", "b"], np.array([3, 4]), np.array(["a", "b"], dtype=object), pd.Series(["a", "b"])):
        assert labels_vector("y", labels).tolist() == list(labels)
