import numpy as np
import pytest
from support.bounds import gamma

from timm_mvhybrid.evaluate import EvaluationError, knn_probe
from timm_mvhybrid.probes.logistic import accuracies
from timm_mvhybrid.probes.neighbours import knn_leave_out

ANGLES = np.array([0.0, 0.55, 0.6, 0.7, 0.8])
FANNED = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1) * np.array([1, 5, 2, 1, 9])[:, None]
# a similarity of up to five dimensions is rounded in norm, quotient and sum, fewer than 16 times; the exponent multiplies
# that by 1/0.07, and a fraction has two votes in it
ROUNDING = gamma(2 * 16, np.float32) / 0.07
LABELS = np.array(["near", "near", "far", "far", "far"])


def test_neighbours_vote_by_their_similarity():
    votes = np.exp(np.cos(ANGLES[1:]) / 0.07)
    assert votes[1:3].sum() < votes[0] < votes[1:].sum()
    for k, expected in ((3, "near"), (4, "far")):
        found = knn_probe(FANNED[1:], LABELS[1:], FANNED[:1], k=k, weights="similarity")
        assert found.prediction[0] == expected
        fractions = np.array([votes[1:k].sum(), votes[0]]) / votes[:k].sum()
        np.testing.assert_allclose(found.probability[0], fractions, rtol=ROUNDING)
    assert knn_probe(FANNED[1:], LABELS[1:], FANNED[:1], k=3).prediction[0] == "far"


def test_votes_of_one_each_are_the_default():
    found = knn_probe(FANNED[1:], LABELS[1:], FANNED[:1], k=3)
    assert found.probability.tolist() == [[2 / 3, 1 / 3]]


def test_one_is_left_out_as_by_hand():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    for weights in ("uniform", "similarity"):
        found = knn_leave_out(features, labels, k=7, weights=weights)
        for index in range(40):
            others = np.arange(40) != index
            alone = knn_probe(
                features[others], labels[others], features[index : index + 1], k=7, weights=weights
            )
            np.testing.assert_allclose(found.probability[index], alone.probability[0], rtol=ROUNDING)


def test_groups_do_not_vouch_for_themselves():
    features = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    labels = [0, 0, 1, 1]
    assert knn_leave_out(features, labels, k=1).prediction.tolist() == [0, 0, 1, 1]
    assert knn_leave_out(features, labels, ["p", "p", "q", "q"], k=1).prediction.tolist() == [1, 1, 0, 0]
    with pytest.raises(EvaluationError, match="all embeddings belong to 'p'"):
        knn_leave_out(features, labels, ["p"] * 4)


def test_fewer_neighbours_than_asked_for_vote_alone():
    features = np.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    for weights in ("uniform", "similarity"):
        found = knn_leave_out(features, [0, 1, 1], [0, 1, 1], k=20, weights=weights)
        np.testing.assert_array_equal(found.probability, [[0, 1], [1, 0], [1, 0]])


def test_collapsed_embeddings_are_told_by_chance():
    for features in (np.ones((6, 4)), np.zeros((6, 4))):
        found = knn_leave_out(features, [0, 0, 0, 1, 1, 1], weights="similarity")
        # one's own class is the rarer one among the others
        assert found.prediction.tolist() == [1, 1, 1, 0, 0, 0]


def test_of_equally_near_neighbours_the_first_vote():
    train = np.repeat([[1.0, 0.0], [0.0, 1.0]], [5, 2], axis=0)
    found = knn_probe(train, [3, 1, 1, 2, 2, 0, 0], [[1.0, 0.2]], k=3)
    assert found.probability.tolist() == [[0, 2 / 3, 0, 1 / 3]]


def test_unknown_weights_are_refused():
    with pytest.raises(EvaluationError, match="`weights` is 'distance'; choose from uniform, similarity"):
        knn_probe(FANNED, LABELS, FANNED, k=2, weights="distance")


def test_balanced_accuracy_weighs_classes_alike():
    scores = accuracies(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]))
    assert scores == {"accuracy": 0.75, "balanced_accuracy": 0.5}
    # a class that is predicted and not there has no recall
    assert accuracies(np.array([0, 0]), np.array([0, 2]))["balanced_accuracy"] == 0.5
