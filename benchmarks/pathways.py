"""Scores of gene sets in spots beside decoupler's and gseapy's."""

import importlib
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from timm_mvhybrid.cohorts import pathway_scores

from .agreement import DisagreementError
from .goals import Goal
from .measure import Contender, Effort, Spread, measure, spread
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings

METHODS = ("mean_z", "ssgsea", "aucell")
PEERS = {"zscore": "decoupler zscore", "aucell": "decoupler aucell", "ssgsea": "gseapy ssgsea"}
LIMIT = 1e-9
"""Largest difference from decoupler's aucell and gseapy's ssgsea on values without ties, of the largest score."""
PEER_FRACTION = {"zscore": 0.1, "aucell": 0.01, "ssgsea": 0.01}
"""Fraction of the spots that a peer is given: it takes each by itself, and would need hours for all."""

Counts = Any
"""(spots, genes), SciPy CSR, float32."""
Sets = dict[str, list[str]]


def figure(peer: str, num_sets: int) -> str:
    """Names the ratio of times with a peer."""
    return f"time a spot, {PEERS[peer]} / ours mean_z, {num_sets} sets"


def memory_figure(num_sets: int) -> str:
    """Names the ratio of memory."""
    return f"memory, input, work and result / sparse input, {num_sets} sets"


def goals(sizes: tuple[int, ...]) -> list[Goal]:
    """Bounds for each number of sets."""
    return [
        goal
        for num_sets in sizes
        for goal in (
            Goal(figure=figure("aucell", num_sets), relation="≥", bound=50),
            Goal(figure=figure("zscore", num_sets), relation="≥", bound=5),
            Goal(figure=memory_figure(num_sets), relation="≤", bound=3),
        )
    ]


def run(settings: Settings) -> Report:
    """Checks that all agree where values have no ties, then times and weighs them.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    num_spots, num_genes, sizes = (300, 400, (5, 10)) if settings.quick else (20_000, 15_000, (50, 1000))
    rng = np.random.default_rng(0)
    counts = sparse.random(
        num_spots, num_genes, 0.05, "csr", np.float32, rng, data_rvs=lambda number: rng.geometric(0.4, number)
    )
    genes = [f"G{index}" for index in range(num_genes)]
    peers, notes = _peers()
    figures: dict[str, Spread] = {}
    tables = []
    with threadpool_limits(settings.threads):
        errors = _check_agreement(peers)
        for num_sets in sizes:
            sets = {
                f"S{index}": [
                    genes[gene] for gene in rng.choice(num_genes, rng.integers(10, 200), replace=False)
                ]
                for index in range(num_sets)
            }
            table, found = _compare(settings, counts, genes, sets, peers, errors)
            tables.append(table)
            figures.update(found)
    return Report(
        name="pathways",
        title=f"Scores of gene sets, {num_spots:,} spots × {num_genes:,} genes, 5 % of the counts above 0",
        method=(
            "aucell agreed with decoupler's and ssgsea with gseapy's before the timing, on values without ties, within "
            f"{LIMIT:g} of the largest score. Peers score a part of the spots and are compared by the time a spot takes; "
            "their matrices are made before. Memory is what Python and NumPy allocate. One process, interleaved rounds."
        ),
        figures=figures,
        goals=goals(sizes),
        tables=tables,
        notes=notes,
        judged=not settings.quick,
    )


def _compare(
    settings: Settings,
    counts: Counts,
    genes: list[str],
    sets: Sets,
    peers: dict[str, Any],
    errors: dict[str, float],
) -> tuple[Table, dict[str, Spread]]:
    """Times ours and the peers on one collection of sets."""
    spots = {f"ours, {method}": counts.shape[0] for method in METHODS}
    calls: dict[str, Callable[[], object]] = {
        f"ours, {method}": partial(pathway_scores, counts, genes, sets, method) for method in METHODS
    }
    for peer, prepare in peers.items():
        number = max(int(counts.shape[0] * (1 if settings.quick else PEER_FRACTION[peer])), 2)
        calls[PEERS[peer]] = prepare(counts[:number], genes, sets)
        spots[PEERS[peer]] = number
    # a round of the peers takes minutes, beside which the spread of the machine is nothing
    effort = settings.effort() if settings.quick else Effort(budget_s=0.0, min_rounds=1, warmups=1)
    times = measure([Contender(name=name, call=call) for name, call in calls.items()], effort)
    ours = "ours, mean_z"
    ratios = {
        name: spread([
            theirs / spots[name] / (reference / spots[ours])
            for theirs, reference in zip(times.seconds[name], times.seconds[ours], strict=True)
        ])
        for name in calls
    }  # fmt: skip
    memory = {f"ours, {method}": _memory(calls[f"ours, {method}"], counts) for method in METHODS}
    found = {figure(peer, len(sets)): ratios[PEERS[peer]] for peer in peers if peer != "ssgsea"}
    found[memory_figure(len(sets))] = spread([memory[ours]])
    columns = [
        "",
        "spots",
        "ms",
        "quartiles",
        "time a spot / ours",
        "quartiles",
        "memory / input",
        "difference",
    ]
    rows = [
        [
            name,
            f"{spots[name]:,}",
            *format_seconds(times.spread(name)),
            *format_ratio(ratios[name]),
            f"{memory[name]:.2f}" if name in memory else "",
            f"{errors[name]:.1e}" if name in errors else "",
        ]
        for name in calls
    ]
    return Table(title=f"{len(sets):,} sets", columns=columns, rows=rows), found


def _memory(call: Callable[[], object], counts: Counts) -> float:
    """Measures input, work and result, in sizes of the input."""
    size = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
    tracemalloc.start()
    try:
        call()
        return float((size + tracemalloc.get_traced_memory()[1]) / size)
    finally:
        tracemalloc.stop()


def _peers() -> tuple[dict[str, Any], list[str]]:
    """Finds the peers that are installed, and says which are not."""
    found: dict[str, Any] = {}
    notes = []
    for package, names in {"decoupler": ("zscore", "aucell"), "gseapy": ("ssgsea",)}.items():
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            notes.append(f"{package}: not installed ({error}); pip install {package}")
            continue
        for name in names:
            found[name] = partial(_gseapy if package == "gseapy" else _decoupler, module, name)
    return found, notes


def _decoupler(module: Any, method: str, counts: Counts, genes: list[str], sets: Sets) -> Callable[[], Any]:
    """Prepares decoupler's method on an AnnData; the call returns its scores in the order of the sets."""
    import anndata
    import pandas

    data = anndata.AnnData(sparse.csr_matrix(counts), var=pandas.DataFrame(index=genes))
    pairs = [(name, gene, 1.0) for name, members in sets.items() for gene in members]
    network = pandas.DataFrame(pairs, columns=["source", "target", "weight"])

    def call() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(module.mt, method)(data, network, tmin=1, verbose=False)
        return data.obsm[f"score_{method}"][list(sets)].to_numpy()

    return call


def _gseapy(module: Any, _: str, counts: Counts, genes: list[str], sets: Sets) -> Callable[[], Any]:
    """Prepares gseapy's ssgsea on a table of genes by spots; the call returns its scores in the order of the sets."""
    import pandas

    names = [f"s{index:06d}" for index in range(counts.shape[0])]
    dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    table = pandas.DataFrame(dense.T, index=genes, columns=names)

    def call() -> Any:
        found = module.ssgsea(
            table,
            sets,
            sample_norm_method="rank",
            min_size=1,
            max_size=len(genes),
            threads=1,
            outdir=None,
            no_plot=True,
        )
        return (
            found.res2d.pivot(index="Name", columns="Term", values="ES")
            .loc[names, list(sets)]
            .to_numpy(float)
        )

    return call


def _check_agreement(peers: dict[str, Any]) -> dict[str, float]:
    """Compares scores of values without ties, raising where they differ."""
    rng = np.random.default_rng(1)
    values = rng.permuted(np.tile(np.arange(1.0, 301.0), (6, 1)), axis=1)
    genes = [f"G{index}" for index in range(300)]
    sets = {f"S{index}": [genes[gene] for gene in rng.choice(300, 20, replace=False)] for index in range(4)}
    errors = {}
    for method in ("aucell", "ssgsea"):
        if method not in peers:
            continue
        expected = peers[method](values, genes, sets)()
        ours = pathway_scores(values, genes, sets, method).values
        error = float(np.abs(ours - expected).max() / np.abs(expected).max())
        # a NaN must not pass
        if not error <= LIMIT:
            raise DisagreementError(f"{method}: off by {error:.2g} of the largest score, allowed {LIMIT:g}")
        errors[f"ours, {method}"] = error
    return errors
