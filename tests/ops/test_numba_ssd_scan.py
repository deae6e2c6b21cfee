"""The kernels of the state-space-duality scan and of Hydra's matrix: widths, the tensors that they read, their threads."""

import pytest
import torch
from support.bounds import assert_accurate
from support.goldens import relative_error

from timm_mvhybrid import ops
from timm_mvhybrid.ops import ssd_scan, ssd_scan_reference
from timm_mvhybrid.ops.quasiseparable import quasiseparable, quasiseparable_reference

pytest.importorskip("numba", reason="numba is not installed")

NAMES = ("x", "dt", "A", "B", "C", "dt_bias", "diagonal")


@pytest.fixture(autouse=True)
def by_numba():
    with ops.use_implementation("numba"):
        yield


def hydra_inputs(length, *, batch=2, heads=4, headdim=19, d_state=21, groups=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [
        draw(batch, length, heads, headdim),
        draw(batch, length, 2, heads),
        -draw(heads).exp(),
        draw(batch, length, 2, groups, d_state),
        draw(batch, length, 2, groups, d_state),
        draw(heads),
        draw(batch, length, heads),
    ]
    return [v.to(dtype).requires_grad_() for v in inputs]


def run(function, inputs):
    """Returns y and every gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))]


def one_direction(inputs, direction):
    """Takes a scan's arguments out of those of Hydra's matrix, skip weights included."""
    x, dt, A, B, C, dt_bias, diagonal = (v.detach() for v in inputs)
    values = (x, dt[:, :, direction], A, B[:, :, direction], C[:, :, direction], diagonal[0, 0], dt_bias)
    return [v.contiguous() for v in values]


SHAPES = [
    # length, heads, headdim, d_state, groups
    (1, 2, 16, 16, 1),
    (3, 4, 1, 1, 2),
    (5, 2, 33, 17, 1),
    (63, 6, 17, 5, 3),
    (66, 2, 48, 40, 2),
    (1025, 1, 3, 5, 1),
]


@pytest.mark.parametrize(("length", "heads", "headdim", "d_state", "groups"), SHAPES)
def test_widths_and_lengths(length, heads, headdim, d_state, groups):
    inputs = hydra_inputs(length, heads=heads, headdim=headdim, d_state=d_state, groups=groups)
    actual = run(quasiseparable, inputs)
    for value, exact in zip(actual, run(quasiseparable_reference, inputs), strict=True):
        assert relative_error(value, exact) < 1e-12
    for direction in range(2):
        options = dict(dt_softplus=True, return_last_state=True, reverse=direction == 1)
        scanned = one_direction(inputs, direction)

        def both(scan, *leaves, options=options):
            y, state = scan(*leaves, **options)
            return torch.cat([y.flatten(), state.flatten()])

        actual = run(lambda *leaves: both(ssd_scan, *leaves), scanned)
        expected = run(lambda *leaves: both(ssd_scan_reference, *leaves), scanned)
        for value, exact in zip(actual, expected, strict=True):
            assert relative_error(value, exact) < 1e-12


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_float32_error_is_that_of_its_roundings(scale):
    inputs = hydra_inputs(34, heads=2, headdim=20, d_state=24, dtype=torch.float32)
    inputs[2] = scale * inputs[2].detach()
    inputs = [x.detach().requires_grad_() for x in inputs]
    actual = run(quasiseparable, inputs)
    assert_accurate(actual, lambda x: run(quasiseparable_reference, x), inputs, roundings=34 + 20 + 24)


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row_of_the_batch(place, value):
    inputs = [x.detach() for x in hydra_inputs(70)]
    clean = run(quasiseparable, inputs)
    by_row = NAMES[place] not in ("A", "dt_bias")
    with torch.no_grad():
        (inputs[place][0] if by_row else inputs[place]).view(-1)[3] = value
    actual, expected = run(quasiseparable, inputs), run(quasiseparable_reference, inputs)
    # no infinity may pass for a number, and no number may be made one of those that are not
    assert torch.equal(actual[0].isfinite(), expected[0].isfinite())
    finite = expected[0].isfinite()
    torch.testing.assert_close(actual[0][finite], expected[0][finite], rtol=1e-9, atol=1e-9)
    if by_row:
        for name, grad, exact in zip(NAMES, actual[1:], clean[1:], strict=True):
            if name not in ("A", "dt_bias"):
                torch.testing.assert_close(grad[1], exact[1], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("length", [5, 66])
def test_what_is_not_finite_leaves_nothing_in_scratch_memory(length, threads):
    """A thread's sums are used again for its next row of the batch, and for the other direction."""
    threads(1)
    inputs = [x.detach() for x in hydra_inputs(length, batch=3)]
    clean = run(quasiseparable, inputs)
    inputs[0][0] = torch.nan
    for name, grad, exact in zip(NAMES, run(quasiseparable, inputs)[1:], clean[1:], strict=True):
        if name not in ("A", "dt_bias"):
            torch.testing.assert_close(grad[1:], exact[1:], rtol=0, atol=0, msg=name)


def test_tensors_may_be_views_of_wider_ones():
    inputs = hydra_inputs(9)
    expected = run(quasiseparable, inputs)
    pieces = [inputs[place].detach() for place in (0, 1, 3, 4, 6)]
    wide = torch.cat([v.flatten(2) for v in pieces], dim=-1)
    parts = wide.split([v.flatten(2).shape[-1] for v in pieces], dim=-1)
    x, dt, B, C, diagonal = (part.unflatten(-1, v.shape[2:]) for part, v in zip(parts, pieces, strict=True))
    x = x.transpose(2, 3).contiguous().transpose(2, 3)  # neighbouring channels apart
    for value, exact in zip(
        run(quasiseparable, [x, dt, inputs[2], B, C, inputs[5], diagonal]), expected, strict=True
    ):
        assert torch.equal(value, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_may_differ(dtype):
    inputs = [v.detach() for v in hydra_inputs(33, dtype=torch.float32)]
    for place in (0, 1, 3, 6):
        inputs[place] = inputs[place].to(dtype)

    def gradients(arguments):
        leaves = [v.detach().requires_grad_() for v in arguments]
        # a cotangent of ones is exact in any dtype, so that only the results are rounded
        return torch.autograd.grad(quasiseparable(*leaves).float().sum(), leaves)

    actual, expected = gradients(inputs), gradients([v.float() for v in inputs])
    for name, value, exact in zip(NAMES, actual, expected, strict=True):
        torch.testing.assert_close(value, exact.to(value.dtype), rtol=0, atol=0, msg=name)
    y = quasiseparable(*inputs)
    exact = quasiseparable(*(v.float() for v in inputs))
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact.to(dtype), rtol=0, atol=0)


def test_nothing_to_scan():
    inputs = [
        v.detach() if name in ("A", "dt_bias") else v.detach()[:0]
        for name, v in zip(NAMES, hydra_inputs(5), strict=True)
    ]
    for value, like in zip(run(quasiseparable, inputs), (inputs[0], *inputs), strict=True):
        assert value.shape == like.shape
        assert not value.any()


def test_threads_do_not_change_what_each_computes(threads):
    inputs = hydra_inputs(70, batch=3, dtype=torch.float32)
    threads(1)
    alone = run(quasiseparable, inputs)
    for number in (2, 3):
        threads(number)
        for value, exact in zip(run(quasiseparable, inputs), alone, strict=True):
            assert torch.equal(value, exact)
    # fewer rows than threads: the heads are shared, and their sums are taken in another order
    one = hydra_inputs(70, batch=1, heads=6, groups=2)
    threads(4)
    shared = run(quasiseparable, one)
    threads(1)
    for value, exact in zip(shared, run(quasiseparable, one), strict=True):
        assert relative_error(value, exact) < 1e-13
