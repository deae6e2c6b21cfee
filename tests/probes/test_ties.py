"""Slides, patches and embeddings that are equal get equal scores, to the last bit, wherever they stand."""

import numpy as np
import pytest

from timm_mvhybrid.evaluate import (
    AttentionOptions,
    SlideTaskOptions,
    attention_mil,
    evaluate_slides,
    knn_probe,
    linear_probe,
)
from timm_mvhybrid.probes.arrays import distinct_rows

QUICK = AttentionOptions(hidden_dim=32, num_epochs=3, learning_rate=3e-3)


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(20, 24)).astype(np.float32) + index % 2 for index in range(12)]
    return bags, np.arange(12) % 2 == 0


def test_slides_of_one_patch_are_ties_whatever_their_length(trained):
    patch = np.random.default_rng(1).normal(size=24).astype(np.float32)
    lengths = (1, 2, 3, 5, 7, 10, 17, 31, 63, 64, 65, 100, 255, 257, 1000, 4097)
    found = attention_mil(*trained, [np.tile(patch, (length, 1)) for length in lengths], QUICK)
    assert len(set(found.tolist())) == 1
    assert 0 < found[0] < 1


def test_slides_of_the_same_patches_in_the_same_proportions_are_ties(trained):
    rng = np.random.default_rng(2)
    bag = rng.normal(size=(30, 24)).astype(np.float32)
    bag[20:] = bag[:10]
    repeated = [np.repeat(bag, times, axis=0) for times in (1, 2, 3, 7)]
    found = attention_mil(*trained, [one[rng.permutation(len(one))] for one in repeated * 3], QUICK)
    assert len(set(found.tolist())) == 1
    other = attention_mil(*trained, [bag, bag[:20]], QUICK)
    assert other[0] != other[1]


def test_a_bag_scores_what_attention_over_all_its_patches_gives(trained):
    rng = np.random.default_rng(3)
    distinct = rng.normal(size=(5, 24)).astype(np.float32)
    bag = distinct[[0, 1, 1, 2, 3, 3, 3, 4]]
    # moved by far less than a probability shows, so that no two patches are equal any more
    apart = bag + np.arange(8, dtype=np.float32)[:, None] * 1e-6
    found, expected = attention_mil(*trained, [bag, apart], QUICK)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found != pytest.approx(attention_mil(*trained, [distinct], QUICK)[0], abs=1e-5)


@pytest.mark.parametrize("value", [0.1, -3.7])
def test_slides_of_identical_patches_have_an_auroc_of_one_half(tmp_path, value):
    import h5py

    rng = np.random.default_rng(0)
    (tmp_path / "bags").mkdir()
    lines = ["slide_id,label"]
    for index in range(30):
        with h5py.File(tmp_path / "bags" / f"s{index}.h5", "w") as file:
            file["features"] = np.tile(np.linspace(value, 1, 48, dtype=np.float32), (rng.integers(1, 200), 1))
        lines.append(f"s{index},{'a' if index % 3 else 'b'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = evaluate_slides(
        [tmp_path / "bags"], tmp_path / "labels.csv", SlideTaskOptions(num_folds=3, attention=QUICK)
    )
    assert list(found.fold_values("bags", "patient", "auroc").values()) == [0.5] * 3


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_equal_embeddings_have_equal_probabilities(probe):
    rng = np.random.default_rng(0)
    X_train, y_train = rng.normal(size=(60, 37)).astype(np.float32), np.arange(60) % 2
    places = rng.integers(0, 5, 203)
    rows = rng.normal(size=(5, 37)).astype(np.float32)
    found = probe(X_train, y_train, rows[places], places % 2)
    for place in range(5):
        assert len(np.unique(found.probability[places == place], axis=0)) == 1
    same = probe(X_train, y_train, np.tile(rows[:1], (203, 1)), places % 2)
    assert same.auroc == 0.5


def test_equally_near_neighbours_vote_in_the_order_of_the_train_part():
    rng = np.random.default_rng(0)
    X_train = np.tile(rng.normal(size=(1, 37)).astype(np.float32), (101, 1))
    y_train = np.arange(101)
    found = knn_probe(X_train, y_train, rng.normal(size=(50, 37)), k=3)
    assert np.array_equal(
        found.probability.argsort(axis=1, kind="stable")[:, -3:], np.tile([0, 1, 2], (50, 1))
    )


def test_distinct_rows_follow_from_content_alone():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, 3)).astype(np.float32)
    rows[0, 1] = 0.0
    order = rng.permutation(np.repeat(np.arange(7), [1, 2, 3, 1, 2, 3, 1]))
    matrix = rows[order]
    matrix[matrix == 0] *= np.where(np.arange((matrix == 0).sum()) % 2, 1, -1).astype(np.float32)
    first, inverse, counts = distinct_rows(matrix)
    np.testing.assert_array_equal(matrix[first][inverse], matrix)
    assert sorted(counts.tolist()) == [1, 1, 1, 2, 2, 3, 3]
    again = distinct_rows(rows)
    np.testing.assert_array_equal(rows[again[0]], matrix[first])
