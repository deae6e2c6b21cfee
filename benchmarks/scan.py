"""The selective scan on a CPU beside its own form in plain torch, and mamba_ssm's, mambapy's and torch's."""

from collections.abc import Callable

from torch import Tensor

from timm_mvhybrid.ops import selective_scan, use_implementation

from .goals import Goal
from .measure import Spread, measure
from .memory import peak_extra_bytes
from .peers import MissingPeerError, Scan, mamba_ssm_reference, mambapy_pscan, torch_associative_scan
from .problems import WORK, Peer, check_peer, scan_calls, selective_scan_problem
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings

OURS = "ours"
PLAIN = "ours, plain torch"
MAMBA = "mamba_ssm selective_scan_ref"
MAMBAPY = "mambapy pscan"

GOALS = [
    Goal(figure=f"forward time, {PLAIN} / {OURS}", relation="≥", bound=5),
    Goal(figure=f"forward + backward time, {PLAIN} / {OURS}", relation="≥", bound=4),
    Goal(figure=f"forward + backward memory, {OURS} / {PLAIN}", relation="≤", bound=1),
    Goal(figure=f"forward time, {MAMBA} / {OURS}", relation="≥", bound=5),
    Goal(figure=f"forward + backward time, {MAMBA} / {OURS}", relation="≥", bound=60),
    Goal(figure=f"forward + backward time, {MAMBAPY} / {OURS}", relation="≥", bound=6),
    Goal(figure=f"forward + backward memory, {OURS} / {MAMBAPY}", relation="≤", bound=0.25),
]


def run(settings: Settings) -> Report:
    """Checks all peers against the reference, then times them and measures their memory.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    problem = selective_scan_problem(2, 8, 19, 4) if settings.quick else selective_scan_problem()
    peers, notes = find_peers()
    exact = problem.exact()
    errors = {peer.name: check_peer(peer, problem, exact) for peer in peers}

    figures: dict[str, Spread] = {}
    tables = [
        Table(
            title="Error against the float64 reference, relative to its largest number",
            columns=["", *exact],
            rows=[[name, *(f"{row[key]:.1e}" for key in exact)] for name, row in errors.items()],
        )
    ]
    for work in WORK:
        contenders = [scan_calls(peer, problem)[work] for peer in peers]
        times = measure(contenders, settings.effort())
        peaks = {contender.name: peak_extra_bytes(contender.call) for contender in contenders}
        rows = []
        for peer in peers:
            ratio = times.ratio(peer.name, OURS)
            memory_ratio = peaks[OURS] / peaks[peer.name]
            if peer.name != OURS:
                figures[f"{work} time, {peer.name} / {OURS}"] = ratio
                figures[f"{work} memory, {OURS} / {peer.name}"] = Spread(
                    median=memory_ratio, low=memory_ratio, high=memory_ratio
                )
            rows.append(
                [
                    peer.name,
                    peer.layout,
                    *format_seconds(times.spread(peer.name)),
                    *format_ratio(ratio),
                    f"{peaks[peer.name] / 2**20:.1f}",
                ]
            )
        tables.append(
            Table(
                title=f"{work.capitalize()}, {len(times.seconds[OURS])} rounds",
                columns=["", "layout", "ms", "quartiles", "time / ours", "quartiles", "peak extra MiB"],
                rows=rows,
            )
        )
    return Report(
        name="scan",
        title=f"Selective scan on a CPU, {problem.size}, float32",
        method=(
            "Each implementation takes its inputs contiguous in the layout of its own model; outputs and gradients of "
            "all inputs agreed with the float64 reference before the timing. One process, interleaved rounds, medians "
            "and quartiles; ratios are those within a round. Memory is the peak of torch's CPU allocations during a "
            "call, beyond the inputs."
        ),
        figures=figures,
        goals=GOALS,
        tables=tables,
        notes=notes,
        judged=not settings.quick,
    )


def find_peers() -> tuple[list[Peer], list[str]]:
    """Collects ours, and the peers that are installed.

    Returns:
        The peers, ours first, and one line for each that is missing.
    """
    peers = [
        Peer(name=OURS, scan=token_major_scan, token_major=True),
        Peer(name="ours, channel-major input", scan=_channel_major),
        Peer(name=PLAIN, scan=_plain, token_major=True),
    ]
    wanted: list[tuple[str, bool, Callable[[], Scan]]] = [
        (MAMBA, False, mamba_ssm_reference),
        (MAMBAPY, True, mambapy_pscan),
        ("torch associative_scan", True, torch_associative_scan),
    ]
    notes = []
    for name, token_major, load in wanted:
        try:
            peers.append(Peer(name=name, scan=load(), token_major=token_major))
        except MissingPeerError as error:
            notes.append(str(error))
    return peers, notes


def token_major_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Runs our scan on token-major tensors, as the mixers hold them.

    Args:
        u: Input, (batch, length, d_inner).
        delta: Step sizes, (batch, length, d_inner).
        A: State matrix, (d_inner, d_state).
        B: Input matrix, (batch, length, d_state).
        C: Output matrix, (batch, length, d_state).
        D: Skip weights, (d_inner,).
        delta_bias: Added to ``delta``, (d_inner,).

    Returns:
        y, (batch, length, d_inner).
    """
    return _channel_major(u.mT, delta.mT, A, B.mT, C.mT, D, delta_bias).mT


def _plain(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    with use_implementation("cpu"):
        return token_major_scan(u, delta, A, B, C, D, delta_bias)


def _channel_major(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    return selective_scan(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True)
