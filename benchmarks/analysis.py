"""The analysis on a CPU: gains of gratings in batches beside one derivative each; the complex scan beside the real one."""

from collections.abc import Callable

import timm
import torch
from torch import Tensor
from torch.func import jvp

import timm_mvhybrid  # noqa: F401
from timm_mvhybrid.analysis import grating, jacobian_gain
from timm_mvhybrid.analysis.jacobian import forward_mode_attention
from timm_mvhybrid.ops import complex_scan
from timm_mvhybrid.ops.selective_scan import selective_scan_tokens

from .agreement import DisagreementError
from .goals import Goal
from .measure import Contender, Spread, measure
from .report import Report, Table
from .settings import Settings

JACOBIAN = "one jvp a grating and image / batched, time"
COMPLEX = "complex scan / real scan of as many parameters, forward and backward, time"
TOLERANCE = 1e-5
GOALS = [
    Goal(figure=JACOBIAN, relation="≥", bound=4.0),
    Goal(figure=COMPLEX, relation="≤", bound=2.2),
]


def run(settings: Settings) -> Report:
    """Times both.

    Args:
        settings: The options; a short run is enough, because a call takes seconds.

    Returns:
        The report.

    Raises:
        DisagreementError: Batched gains are not those of one derivative each.
    """
    gains, gain_rows = _gratings(settings)
    scans, scan_rows = _scans(settings)
    return Report(
        name="analysis",
        title="Gains of gratings in batches, and the scan with complex eigenvalues",
        method=(
            "Interleaved rounds on the same inputs; medians and quartiles. Gratings: 8 frequencies × 2 orientations at one "
            "image a round, because the time of 16 images is 16 times that of one either way. Scans: 8 × 257 × 384, 16 real "
            "states or 8 pairs."
        ),
        figures={JACOBIAN: gains, COMPLEX: scans},
        goals=GOALS,
        tables=[
            Table(title="Time in s", columns=["contender", "median", "quartiles"], rows=gain_rows + scan_rows)
        ],
        judged=not settings.quick,
    )


def _gratings(settings: Settings) -> tuple[Spread, list[list[str]]]:
    name, size = ("test_mvhybrid", 64) if settings.quick else ("mvhybrid_small_patch16_256", 256)
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size).eval()
    image = torch.randn(1, 3, size, size)
    count = 2 if settings.quick else 8
    waves = torch.stack(
        [grating(f, o, (size, size)) for f in range(1, count + 1) for o in ("rows", "columns")]
    )

    def one_by_one() -> Tensor:
        with forward_mode_attention(), torch.no_grad():
            found = [jvp(model, (image,), (wave[None],))[1].norm() / wave.norm() for wave in waves]
        return torch.stack(found).double()

    expected, batched = one_by_one(), torch.as_tensor(jacobian_gain(model, image, waves)[0])
    error = float(((batched - expected) / expected).abs().max())
    if error > TOLERANCE:
        raise DisagreementError(f"gains of gratings in batches differ by {error:.1e}, relative")
    return _timed(
        settings,
        {"one jvp each": one_by_one, "batched": lambda: jacobian_gain(model, image, waves)},
        "one jvp each",
        "batched",
    )


def _scans(settings: Settings) -> tuple[Spread, list[list[str]]]:
    batch, length, d_inner = (2, 33, 16) if settings.quick else (8, 257, 384)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    u, delta, B, C = (
        draw(batch, length, d_inner),
        draw(batch, length, d_inner),
        draw(batch, length, 1, 16),
        draw(batch, length, 1, 16),
    )
    D, bias, cotangent = draw(d_inner), draw(d_inner), torch.randn(batch, length, d_inner)
    rates = (-torch.arange(1.0, 17.0)).expand(d_inner, 16).clone().requires_grad_()
    decay = torch.full((d_inner, 8), -0.5, requires_grad=True)
    frequency = (torch.pi * torch.arange(8.0)).expand(d_inner, 8).clone().requires_grad_()

    def real() -> object:
        y = selective_scan_tokens(u, delta, rates, B, C, D, None, bias)
        return torch.autograd.grad(y, [u, delta, rates, B, C, D, bias], cotangent)

    def pairs() -> object:
        y = complex_scan(u, delta, decay, frequency, B, C, D, bias)
        return torch.autograd.grad(y, [u, delta, decay, frequency, B, C, D, bias], cotangent)

    return _timed(settings, {"complex scan": pairs, "real scan": real}, "complex scan", "real scan")


def _timed(
    settings: Settings, calls: dict[str, Callable[[], object]], numerator: str, denominator: str
) -> tuple[Spread, list[list[str]]]:
    contenders = [Contender(name=name, call=call) for name, call in calls.items()]
    times = measure(contenders, settings.effort(min_rounds=5, max_rounds=21))
    rows = [
        [name, f"{spread.median:.3g}", f"{spread.low:.3g} to {spread.high:.3g}"]
        for name, spread in ((name, times.spread(name)) for name in calls)
    ]
    return times.ratio(numerator, denominator), rows
