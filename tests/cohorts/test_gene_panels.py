import numpy as np
import pytest
from scipy import sparse
from support.evaluation_goldens import inputs, reference

from timm_mvhybrid.cohorts.cohort import select_at_most
from timm_mvhybrid.evaluate import EvaluationError, select_genes


@pytest.fixture(scope="module")
def slides():
    data = inputs("gene_selection")
    return [data[f"counts_{index}"] for index in range(3)], [list(data[f"var_{index}"]) for index in range(3)]


@pytest.mark.parametrize(("method", "name"), [("hvg", "var"), ("var", "var"), ("mean", "mean")])
@pytest.mark.parametrize("min_cells", [0.1, 0])
def test_panels_are_those_of_hests_code(slides, method, name, min_cells):
    expected = reference()["gene_selection"][f"hest_{name}_k50_mincells{min_cells}"]
    assert select_genes(*slides, method, k=50, min_cells=min_cells) == expected


def test_highly_expressed_variable_genes_are_those_of_stems_code(slides):
    expected = reference()["gene_selection"]["stem_hmhvg"]
    found = select_genes(*slides, "hmhvg", k=expected["target"], n_top_per_slide=expected["n_top_per_slide"])
    assert found == expected["genes"]


def test_sparse_counts_give_the_same_panels(slides):
    counts, names = slides
    for method in ("hvg", "mean", "hmhvg"):
        dense, compressed = (
            select_genes(some, names, method, k=20, n_top_per_slide=80)
            for some in (counts, [sparse.csr_matrix(c) for c in counts])
        )
        assert dense == compressed


def test_a_gene_missing_in_one_slide_is_never_chosen(slides):
    counts, names = slides
    for method in ("hvg", "mean", "hmhvg"):
        chosen = select_genes(counts, names, method, k=10, n_top_per_slide=80)
        gone = chosen[0]
        kept = [name != gone for name in names[1]]
        fewer = [counts[0], counts[1][:, kept], counts[2]]
        lists = [names[0], [name for name in names[1] if name != gone], names[2]]
        again = select_genes(fewer, lists, method, k=10, n_top_per_slide=80)
        assert gone not in again
        assert len(again) == 10


def test_controls_and_housekeeping_genes_are_no_candidates():
    rng = np.random.default_rng(0)
    names = [
        "BLANK_1",
        "NegControl2",
        "MT-CO1",
        "mt-Nd1",
        "RPS3",
        "RPL5",
        *(f"G{index}" for index in range(30)),
    ]
    counts = [rng.poisson(rng.gamma(1, 4, len(names)) + 1, (40, len(names))) for _ in range(2)]
    for chosen in (select_genes(counts, [names] * 2, method, k=34) for method in ("hvg", "mean")):
        assert not any("BLANK" in name or "Control" in name for name in chosen)
    chosen = select_genes(counts, [names] * 2, "hmhvg", k=25)
    assert not any(name.startswith(("MT", "mt", "RPS", "RPL")) for name in chosen)


def test_too_few_genes_and_inconsistent_input_are_errors(slides):
    counts, names = slides
    with pytest.raises(EvaluationError, match=r"5000 genes wanted, .* ask for fewer"):
        select_genes(counts, names, k=5000)
    with pytest.raises(EvaluationError, match="5000 genes wanted"):
        select_genes(counts, names, "hmhvg", k=5000)
    with pytest.raises(EvaluationError, match=r"slide 1: gene '.*' occurs more than once"):
        select_genes(counts[:2], [names[0], [*names[1][:-1], names[1][0]]])
    with pytest.raises(EvaluationError, match="slide 0: counts of shape"):
        select_genes([counts[0][:, 1:]], [names[0]])
    with pytest.raises(EvaluationError, match="`method` is 'svg'; choose from hvg"):
        select_genes(counts, names, "svg")
    with pytest.raises(EvaluationError, match="no gene in common"):
        select_genes(counts[:2], [names[0], [f"other {name}" for name in names[1]]], "hmhvg")


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_means_over_many_spots_are_those_of_float64(convert):
    """Beyond 2^24 a float32 sum takes 101 for 100 each time: the tie between two even numbers goes the same way."""
    num_spots = 300_000
    even = np.where(np.arange(num_spots) % 200 < 101, 100, 102)
    counts = np.stack([even, np.full(num_spots, 101)], axis=1).astype(np.float32)
    assert counts[:, 0].mean(dtype=np.float64) < 101
    assert select_genes([convert(counts)], [["even", "odd"]], "mean", 1) == ["odd"]
    parts = [convert(counts[:1000]), convert(counts[1000:])]
    assert select_genes(parts, [["even", "odd"]] * 2, "mean", 1) == ["odd"]


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix])
def test_at_most_so_many_genes_of_those_that_vary(convert):
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 4, 40) + 1, (60, 40))
    counts[:, 7], counts[:, 9] = 5, 0
    names = [f"G{index}" for index in range(40)]
    slides = [convert(counts[:20]), convert(counts[20:])]
    varying = [name for name in sorted(names) if name not in ("G7", "G9")]
    assert select_at_most(slides, [names] * 2, 50) == varying
    assert select_at_most(slides[:1], [names], 50) == [name for name in names if name in varying]
    few = select_at_most(slides, [names] * 2, 10)
    kept = [index for index in range(40) if index not in (7, 9)]
    assert few == select_genes(
        [part[:, kept] for part in slides], [[names[index] for index in kept]] * 2, k=10
    )
    # each slide has one value of its own
    stepped = [convert(np.full((4, 1), value)) for value in (2, 3)]
    assert select_at_most(stepped, [["gene"]] * 2) == ["gene"]
    with pytest.raises(EvaluationError, match=r"no gene is present in 10% .* of 1 slides and varies"):
        select_at_most(stepped[:1], [["gene"]])
    with pytest.raises(EvaluationError, match="no gene is present"):
        select_at_most(stepped, [["gene"], ["other"]])


@pytest.mark.parametrize("num_slides", [1, 3])
def test_genes_of_half_a_million_spots_are_told_from_rounding(num_slides):
    """Sums of float32 would give the constant genes a variance."""
    num_spots = 510_000 // num_slides
    spots = np.arange(num_spots) % 100 < 50
    columns = np.stack([np.full(num_spots, 600), 300 + spots, np.zeros(num_spots), 100 - spots], axis=1)
    slides = [sparse.csr_matrix(columns.astype(np.float64))] * num_slides
    assert set(select_at_most(slides, [("high", "weak", "absent", "low")] * num_slides, 4)) == {"low", "weak"}
