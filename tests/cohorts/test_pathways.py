import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from timm_mvhybrid.cohorts import fit_gene_statistics, pathway_scores
from timm_mvhybrid.cohorts import gene_statistics as chunked
from timm_mvhybrid.runtime.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "finetuning"
SETS = GOLDEN / "pathways.gmt"
METHODS = ["mean_z", "ssgsea", "aucell"]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "pathway_scores.npz"))


@pytest.fixture(scope="module")
def tied():
    return dict(np.load(GOLDEN / "pathway_scores_tied.npz"))


def drawn(seed=0, num_spots=40, num_genes=60):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2, num_genes), (num_spots, num_genes))
    counts[3], counts[:, 5] = 0, 0
    genes = [f"G{index}" for index in range(num_genes)]
    sets = {f"S{index}": list(rng.choice(genes, 5 + 3 * index, replace=False)) for index in range(4)}
    return counts, genes, sets


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
def test_mean_z_is_the_golden_one(golden, kind):
    scores = pathway_scores(kind(golden["counts"]), golden["genes"], SETS, train=golden["train"])
    assert scores.names == tuple(golden["pathways"])
    assert np.flatnonzero(~scores.measured).tolist() == [1]
    assert np.isnan(scores.values[1]).all()
    kept = scores.measured
    np.testing.assert_allclose(scores.values[kept], golden["mean_z"][kept], rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.statistics.mean, golden["mean"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.statistics.std, golden["std"], rtol=0, atol=1e-12)
    assert dict(zip(scores.names, scores.coverage, strict=True))["HALF_MISSING"] == 0.5
    assert list(scores.dropped) == ["FOUR_GENES", "ALL_MISSING"]


def test_ranks_without_ties_are_those_of_gseapy_and_decoupler(golden):
    arguments = golden["tie_free"], golden["genes"], SETS
    found = pathway_scores(*arguments, "ssgsea").values
    np.testing.assert_allclose(
        found, golden["ssgsea_es"], rtol=0, atol=1e-9 * np.abs(golden["ssgsea_es"]).max()
    )
    found = pathway_scores(*arguments, "aucell", num_top=int(golden["n_up"])).values
    np.testing.assert_allclose(found, golden["aucell"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("of", ["counts", "log1p_cpm"])
def test_ties_are_the_expectation_over_their_orders(golden, tied, of):
    for method, name in (("ssgsea", "ssgsea_es"), ("aucell", "aucell")):
        scores = pathway_scores(golden[of], golden["genes"], SETS, method)
        expected, kept = tied[name], scores.measured
        assert kept.sum() == len(kept) - 1
        atol = 1e-9 * np.abs(expected).max()
        np.testing.assert_allclose(scores.values[kept], expected[kept], rtol=0, atol=atol)


@pytest.mark.parametrize("method", ["ssgsea", "aucell"])
def test_expectation_is_the_mean_over_all_orders_of_a_tied_block(method):
    # of five genes two are tied: both orders, as values without ties, average to what the tie gives
    genes, sets = list("ABCDE"), {"S": ["A", "B"]}
    orders = np.array([[3.0, 2.0, 2.1, 0.0, -1.0], [3.0, 2.1, 2.0, 0.0, -1.0]])
    options = {"method": method, "min_genes": 2, **({"weight": 0} if method == "ssgsea" else {"num_top": 3})}
    both = pathway_scores(orders, genes, sets, **options).values
    tie = pathway_scores(np.array([[3.0, 2.0, 2.0, 0.0, -1.0]]), genes, sets, **options).values
    assert both[0] != both[1]
    np.testing.assert_allclose(tie[0], both.mean(axis=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_genes_and_the_size_of_chunks_do_not_matter(method, monkeypatch):
    counts, genes, sets = drawn()
    expected = pathway_scores(counts, genes, sets, method).values
    order = np.random.default_rng(1).permutation(len(genes))
    monkeypatch.setattr(chunked, "_CHUNK_VALUES", 100)
    shuffled = pathway_scores(
        sparse.csr_matrix(counts[:, order]), [genes[i] for i in order], sets, method
    ).values
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-12 * np.nanmax(np.abs(expected)))


@pytest.mark.parametrize("method", METHODS)
def test_counts_stay_as_they_were_whatever_they_store(method):
    counts, genes, sets = drawn()
    matrix = sparse.csr_matrix(counts.astype(np.float32))
    expected = pathway_scores(matrix, genes, sets, method).values
    rows, columns = counts.nonzero()
    # each count in two parts, and a zero that is stored
    half = np.concatenate([counts[rows, columns] - 1, np.ones(len(rows)), [0]])
    places = np.concatenate([rows, rows, [0]]), np.concatenate([columns, columns, [5]])
    starts = np.concatenate([[0], np.cumsum(np.bincount(places[0], minlength=len(counts)))])
    order = places[0].argsort(kind="stable")
    split = sparse.csr_matrix((half[order], places[1][order], starts), shape=counts.shape)
    before = [part.copy() for part in (split.data, split.indices, split.indptr)]
    np.testing.assert_array_equal(pathway_scores(split, genes, sets, method).values, expected)
    for part, kept in zip((split.data, split.indices, split.indptr), before, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_statistics_come_from_training_spots_alone_and_serve_others():
    counts, genes, sets = drawn()
    train = np.arange(3, 25)
    others = counts.copy()
    others[25:] *= 7
    here = pathway_scores(counts, genes, sets, train=train)
    there = pathway_scores(others, genes, sets, train=np.isin(np.arange(40), train))
    np.testing.assert_array_equal(there.values[:25], here.values[:25])
    assert here.statistics.num_spots == len(train) - 1, "an empty spot says nothing of expression"
    statistics = fit_gene_statistics(counts[3:25])
    later = pathway_scores(counts[30:], genes, sets, statistics=statistics)
    np.testing.assert_allclose(later.values, here.values[30:], rtol=0, atol=1e-13)


def test_genes_that_do_not_vary_count_as_0():
    counts = np.array([[5, 3, 2, 0], [5, 1, 4, 0], [5, 2, 3, 0]])
    scores = pathway_scores(counts, list("ABCD"), {"S": ["A", "B", "D"]}, min_genes=3)
    assert scores.statistics.std[[0, 3]].tolist() == [0, 0]
    logs = np.log1p(counts[:, 1] * 1e5)
    np.testing.assert_allclose(scores.values[:, 0], (logs - logs.mean()) / logs.std() / 3, rtol=0, atol=1e-12)


def test_values_that_are_normalised_already_are_taken_as_they_are_on_request():
    counts, genes, sets = drawn()
    logs = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e6)
    expected = pathway_scores(counts, genes, sets).values
    found = pathway_scores(logs, genes, sets, normalise=False).values
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    with pytest.raises(
        DataError, match=r"spot 0, gene .*, which is not a count; give raw counts, or `normalise=False`"
    ):
        pathway_scores(logs, genes, sets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gsva"}, "`method` is 'gsva'; choose from mean_z, ssgsea, aucell"),
        ({"genes": ["G0"]}, "`genes` has 1 names for 60 columns"),
        ({"train": [0, 1, 40]}, "`train` holds indices from 0 to 40 for 40 spots"),
        ({"train": [-1, 1]}, "`train` holds indices from -1"),
        ({"train": [1, 0, 1, 1]}, "`train` names a spot twice.*mask of type bool"),
        ({"train": np.ones(7, bool)}, "`train` has the shape .7,. for 40 spots"),
        ({"train": np.zeros(40, bool)}, "`train` names no spot"),
        ({"train": [0.5]}, "`train` is 1-dimensional float64"),
        ({"train": [3, 4]}, "1 training spots have counts"),
        ({"num_top": 1, "method": "aucell"}, "`num_top` is 1; give 2 to 60"),
        ({"weight": -1, "method": "ssgsea"}, "`weight` is -1"),
        ({"counts": np.full((2, 60), -1)}, "holds -1.0 at spot 0, gene 0, which is not a count"),
        ({"counts": np.full((2, 60), np.nan), "method": "ssgsea"}, "holds nan .*not a finite number"),
        ({"counts": np.zeros(60)}, "`counts` is 1-dimensional"),
        ({"counts": np.zeros((0, 60))}, "`counts` has the shape"),
    ],
)
def test_what_cannot_be_scored_is_named(change, message):
    counts, genes, sets = drawn()
    arguments = {"counts": counts, "genes": genes, "gene_sets": sets, **change}
    with pytest.raises(DataError, match=message):
        pathway_scores(**arguments)


@pytest.mark.parametrize("method", ["ssgsea", "aucell"])
def test_ranks_within_a_spot_take_nothing_from_training_spots(method):
    counts, genes, sets = drawn()
    expected = pathway_scores(counts, genes, sets, method).values
    np.testing.assert_array_equal(
        pathway_scores(counts, genes, sets, method, train=[1, 2, 3]).values, expected
    )
    with pytest.raises(DataError, match=f"`statistics` have no meaning for `method='{method}'`"):
        pathway_scores(counts, genes, sets, method, statistics=fit_gene_statistics(counts))


def test_statistics_of_other_genes_are_refused():
    counts, genes, sets = drawn()
    statistics = fit_gene_statistics(counts[:, :30])
    with pytest.raises(DataError, match="`statistics` are of 30 genes, `counts` has 60"):
        pathway_scores(counts, genes, sets, statistics=statistics)
    with pytest.raises(DataError, match="exclude each other"):
        pathway_scores(counts, genes, sets, statistics=statistics, train=[0, 1])


def test_a_set_of_all_genes_leaves_ssgsea_nothing_to_compare_with():
    counts, genes, sets = drawn()
    scores = pathway_scores(counts, genes, {**sets, "all": genes}, "ssgsea")
    assert "at most 59" in scores.dropped["all"]
    assert "all" in pathway_scores(counts, genes, {**sets, "all": genes}, "aucell").names


@pytest.mark.parametrize("method", ["ssgsea", "aucell"])
def test_only_the_order_of_values_ranks_zeros_and_negative_ones_among_them(method):
    counts, genes, sets = drawn()
    options = {"num_top": 50} if method == "aucell" else {}
    expected = pathway_scores(counts + 10, genes, sets, method, **options)
    found = pathway_scores(counts - 2, genes, sets, method, **options)
    assert found.measured.all()
    np.testing.assert_allclose(
        found.values, expected.values, rtol=0, atol=1e-12 * np.abs(expected.values).max()
    )


@pytest.mark.parametrize("method", METHODS)
def test_sparse_counts_stay_sparse(method):
    rng = np.random.default_rng(0)
    counts = sparse.random(
        4000, 8000, 0.05, "csr", np.float32, rng, data_rvs=lambda size: rng.integers(1, 9, size)
    )
    genes = [f"G{index}" for index in range(8000)]
    sets = {f"S{index}": genes[index * 40 : (index + 1) * 40] for index in range(200)}
    size = counts.data.nbytes + counts.indices.nbytes
    tracemalloc.start()
    try:
        pathway_scores(counts, genes, sets, method)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # beside the input; dense, the counts alone would be ten times as much
    assert peak < 2 * size
