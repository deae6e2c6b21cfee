"""The kernels of what each step and head has one number of: its size, its decay, and their gradients."""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .triton_tile import tokens_at

LOG2_E = tl.constexpr(1.4426950408889634)
SOFTPLUS_THRESHOLD = tl.constexpr(20.0)


@triton.jit
def _softplus(v):
    """Computes log(1 + exp(v)) to a few ulp of the result for negative v too, and v above torch's threshold."""
    small = tl.exp(-tl.abs(v))
    rounded = small + 1.0
    # log(1 + u) loses u's lower bits in the sum; the factor u / ((1 + u) − 1) puts them back
    lost = rounded - 1.0
    log1p = tl.where(lost == 0.0, small, tl.log(rounded) * (small / tl.where(lost == 0.0, 1.0, lost)))
    return tl.where(v > SOFTPLUS_THRESHOLD, v, tl.maximum(v, 0.0) + log1p)


@triton.jit
def biased_steps(dt, dt_bias, tokens, valid, dt_batch, dt_step, dt_head, batch, head, wide: tl.constexpr):
    """Loads dt + dt_bias, (steps,), of a head; zero plus the bias past the end."""
    pointers = dt + batch * dt_batch + head * dt_head + tokens * dt_step
    step = tl.load(pointers, mask=valid, other=0.0).to(wide)
    if dt_bias is not None:
        step += tl.load(dt_bias + head).to(wide)
    return step


@triton.jit
def step_kernel(
    dt,
    A,
    dt_bias,
    steps,
    length,
    heads,
    dt_batch,
    dt_step,
    dt_head,
    DT_SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Computes δ and the log-decays s cumulated in each chunk, in units of log 2; one program a chunk of a head.

    ``steps`` is (batch, heads, chunks, 3, CHUNK): δ, and s as the sum of two numbers, so that the differences of s
    keep a single step's accuracy without float64. Past the end δ is zero: no decay and no input.
    """
    program = tl.program_id(0)
    chunks = tl.cdiv(length, CHUNK)
    row = (program // chunks).to(tl.int64)
    batch = row // heads
    head = row % heads
    order = tl.arange(0, CHUNK)
    times = (program % chunks) * CHUNK + order
    tokens, valid = tokens_at(times, length, REVERSE), times < length
    step = biased_steps(dt, dt_bias, tokens, valid, dt_batch, dt_step, dt_head, batch, head, WIDE)
    if DT_SOFTPLUS:
        step = _softplus(step)
    step = tl.where(valid, step, 0.0)
    sums = tl.cumsum(step.to(tl.float64) * tl.load(A + head).to(tl.float64) * LOG2_E, 0)
    rounded = sums.to(WIDE)
    steps += program.to(tl.int64) * 3 * CHUNK + order
    tl.store(steps, step)
    tl.store(steps + CHUNK, rounded)
    tl.store(steps + 2 * CHUNK, (sums - rounded.to(tl.float64)).to(WIDE))


@triton.jit
def step_gradient_kernel(
    steps,
    grad_sums,
    grad_over_chunk,
    grad_driven,
    dt,
    A,
    dt_bias,
    grad_dt,
    grad_A,
    grad_dt_bias,
    length,
    heads,
    blocks,
    dt_batch,
    dt_step,
    dt_head,
    DT_SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Computes the gradient of dt, and those of A and dt_bias by chunk, (batch, heads, chunks); programs as for steps.

    The sums over a chunk run in float64.
    """
    program = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(length, CHUNK)
    row = program // chunks
    batch = row // heads
    head = row % heads
    order = tl.arange(0, CHUNK)
    times = (program % chunks) * CHUNK + order
    tokens, valid = tokens_at(times, length, REVERSE), times < length

    through_sums = tl.zeros((CHUNK,), tl.float64)
    driven = tl.zeros((CHUNK,), tl.float64)
    for block in range(0, blocks):
        place = program * blocks + block
        # s_i sums the log-decays up to i, so each gathers the gradients of all later sums
        through_sums += tl.cumsum(tl.load(grad_sums + place * CHUNK + order), 0, reverse=True)
        through_sums += tl.load(grad_over_chunk + place)
        driven += tl.load(grad_driven + place * CHUNK + order).to(tl.float64)
    grad = through_sums * tl.load(A + head).to(tl.float64) + driven
    if DT_SOFTPLUS:
        biased = biased_steps(dt, dt_bias, tokens, valid, dt_batch, dt_step, dt_head, batch, head, WIDE)
        slope = 1.0 / (1.0 + tl.exp(-biased))
        grad *= tl.where(biased > SOFTPLUS_THRESHOLD, 1.0, slope).to(tl.float64)
    step = tl.load(steps + program * 3 * CHUNK + order)
    tl.store(grad_A + program, tl.sum(through_sums * step.to(tl.float64), 0))
    if dt_bias is not None:
        tl.store(grad_dt_bias + program, tl.sum(tl.where(valid, grad, 0.0), 0))
    pointers = grad_dt + (batch * length + tokens) * heads + head
    tl.store(pointers, grad.to(WIDE).to(grad_dt.dtype.element_ty), mask=valid)
