"""EinFFT beside its straightforward complex form."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from timm_mvhybrid.ops.einfft import einfft

from .agreement import check_agreement
from .complex_einfft import complex_einfft
from .goals import Goal
from .measure import Contender, Spread, measure
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings

OURS = "ours"
FOUR_REAL = "complex FFT, four real products"
ONE_COMPLEX = "complex FFT, one complex product"
WORK = ("forward", "forward + backward")
NAMES = ("x", "weight 1", "bias 1", "weight 2", "bias 2")
THRESHOLD = 0.01
LIMIT = 2e-5
"""Largest float32 error, relative to the largest number of the exact result."""

GOALS = [
    Goal(figure=f"forward + backward time, {peer} / {OURS}", relation="≥", bound=1.5)
    for peer in (FOUR_REAL, ONE_COMPLEX)
]

Mixer = Callable[..., Tensor]
"""x, weight 1, bias 1, weight 2, bias 2, threshold → y."""


def run(settings: Settings) -> Report:
    """Checks both complex forms and ours against the complex form in float64, then times them.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    batch, length, d_model = (2, 17, 32) if settings.quick else (8, 257, 384)
    inputs = _inputs(batch, length, d_model)
    mixers: dict[str, Mixer] = {
        OURS: einfft,
        FOUR_REAL: partial(complex_einfft, product="real"),
        ONE_COMPLEX: partial(complex_einfft, product="complex"),
    }
    exact = _outputs_and_gradients(mixers[FOUR_REAL], [x.double() for x in inputs])
    errors = {
        name: check_agreement(name, _outputs_and_gradients(mixer, inputs), exact, LIMIT)
        for name, mixer in mixers.items()
    }
    figures: dict[str, Spread] = {}
    tables = [
        Table(
            title="Error against the float64 complex form, relative to its largest number",
            columns=["", *exact],
            rows=[[name, *(f"{row[key]:.1e}" for key in exact)] for name, row in errors.items()],
        )
    ]
    for work in WORK:
        contenders = [
            Contender(name=name, call=_call(mixer, inputs, work == WORK[1])) for name, mixer in mixers.items()
        ]
        times = measure(contenders, settings.effort(min_rounds=15))
        for name in (FOUR_REAL, ONE_COMPLEX):
            figures[f"{work} time, {name} / {OURS}"] = times.ratio(name, OURS)
        tables.append(
            Table(
                title=f"{work.capitalize()}, {len(times.seconds[OURS])} rounds",
                columns=["", "ms", "quartiles", "time / ours", "quartiles"],
                rows=[
                    [name, *format_seconds(times.spread(name)), *format_ratio(times.ratio(name, OURS))]
                    for name in mixers
                ],
            )
        )
    return Report(
        name="einfft",
        title=f"EinFFT on a CPU, batch × length × d_model = {batch} × {length} × {d_model}, float32",
        method=(
            f"Outputs and gradients agreed with the complex form in float64 to {LIMIT:g} before the timing. One "
            "process, interleaved rounds, medians and quartiles; ratios are those within a round."
        ),
        figures=figures,
        goals=GOALS,
        tables=tables,
        judged=not settings.quick,
    )


def _inputs(batch: int, length: int, d_model: int) -> list[Tensor]:
    """Draws tokens, and weights as the layer initialises them."""
    generator = torch.Generator().manual_seed(0)
    width = d_model // 4
    shapes = [(2, 4, width, width), (2, 4, width)] * 2
    weights = [0.02 * torch.randn(shape, generator=generator) for shape in shapes]
    return [torch.randn(batch, length, d_model, generator=generator), *weights]


def _outputs_and_gradients(mixer: Mixer, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = mixer(*leaves, THRESHOLD)
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    named = {f"gradient by {name}": grad for name, grad in zip(NAMES, gradients, strict=True)}
    return {"y": y.detach(), **named}


def _call(mixer: Mixer, inputs: Sequence[Tensor], backward: bool) -> Callable[[], object]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    cotangent = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))

    def forward() -> Tensor:
        with torch.no_grad():
            return mixer(*leaves, THRESHOLD)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(mixer(*leaves, THRESHOLD), leaves, cotangent)

    return both if backward else forward
