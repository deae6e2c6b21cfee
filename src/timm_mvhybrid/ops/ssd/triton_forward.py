"""The forward kernel of the scan, and the pieces that backward shares with it.

A program owns one head (or a block of its channels) of one sequence and walks the chunks with the state in registers.
The formulas are those of ``cpu``; δ_j multiplies the scores instead of x, so that x enters every product as it was
given. ``product`` says what is rounded on the way to the tensor cores.
"""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

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


INTERPRETED = tl.constexpr(not isinstance(_softplus, triton.JITFunction))
"""Whether TRITON_INTERPRET=1 was set at import, so that kernels run in numpy, on the CPU."""


@triton.jit
def _half_product(a, b, total):
    """Adds a @ b to ``total`` in float32."""
    if INTERPRETED:  # numpy would multiply bfloat16's bit patterns
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total)


@triton.jit
def product(a, b):
    """Computes a @ b, summed in float32 (float64 for float64).

    float32 and float64 operands are multiplied as they are. So are two operands in half precision, on the tensor
    cores. Where one is a float32 product, as the state or decay-weighted scores, it is cut into two bfloat16 parts,
    which hold 16 of its 24 bits at float32's range, at the cost of a second product: rounding it to half precision
    would lose as much as the result's own rounding, once in each product and again with each chunk of the state.
    float16 is cut too: it is the sum of two bfloat16 exactly, and float16 parts of the state would overflow.
    """
    a_is_half: tl.constexpr = a.dtype.primitive_bitwidth == 16
    b_is_half: tl.constexpr = b.dtype.primitive_bitwidth == 16
    wide: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    total = tl.zeros((a.shape[0], b.shape[1]), wide)
    if a.dtype == b.dtype:
        if a_is_half:
            return _half_product(a, b, total)
        return tl.dot(a, b, total, input_precision="ieee", out_dtype=wide)
    a_head = a.to(tl.bfloat16)
    b_head = b.to(tl.bfloat16)
    # the products of both tails are below the last bit kept; tails come first, so that the sum rounds them once
    if not b_is_half or b.dtype == tl.float16:
        b_tail = (b.to(tl.float32) - b_head.to(tl.float32)).to(tl.bfloat16)
        total = _half_product(a_head, b_tail, total)
    if not a_is_half or a.dtype == tl.float16:
        a_tail = (a.to(tl.float32) - a_head.to(tl.float32)).to(tl.bfloat16)
        total = _half_product(a_tail, b_head, total)
    return _half_product(a_head, b_head, total)


@triton.jit
def biased_steps(dt, dt_bias, times, length, dt_batch, dt_step, dt_head, batch, head, wide: tl.constexpr):
    """Loads dt + dt_bias of a chunk, zero past the end; offsets are of 64 bits."""
    pointers = dt + batch * dt_batch + head * dt_head + times.to(tl.int64) * dt_step
    step = tl.load(pointers, mask=times < length, other=0.0).to(wide)
    if dt_bias is not None:
        step += tl.load(dt_bias + head).to(wide)
    return step


@triton.jit
def step_sizes(biased, times, length, DT_SOFTPLUS: tl.constexpr):
    """Computes δ; zero past the end, so that these steps neither decay nor drive the state."""
    step = _softplus(biased) if DT_SOFTPLUS else biased
    return tl.where(times < length, step, 0.0)


@triton.jit
def log2_decays(step, rate):
    """Computes δ A in units of log 2; float64, for the differences of its sums to keep a single step's accuracy."""
    return step.to(tl.float64) * rate.to(tl.float64) * LOG2_E


@triton.jit
def pairwise_decays(sums, wide: tl.constexpr):
    """Computes exp(s_i − s_j) for j ≤ i, else 0, from sums s in float64 and in units of log 2."""
    order = tl.arange(0, sums.shape[0])
    # two float32 numbers hold s, so that no difference of all pairs is taken in float64
    head = sums.to(wide)
    tail = (sums - head.to(tl.float64)).to(wide)
    exponents = (head[:, None] - head[None, :]) + (tail[:, None] - tail[None, :])
    # before exp: it may overflow above the diagonal
    return tl.exp2(tl.where(order[:, None] >= order[None, :], exponents, float("-inf")))


@triton.jit
def load_tile(base, rows, columns, num_rows, num_columns, row_stride, column_stride, dtype: tl.constexpr):
    """Loads a matrix, zero outside."""
    pointers = base + rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return tl.load(pointers, mask=inside, other=0.0).to(dtype)


@triton.jit
def forward_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    dt_bias,
    y,
    last_state,
    states,
    length,
    heads,
    heads_per_group,
    headdim,
    d_state,
    x_batch,
    x_step,
    x_head,
    x_channel,
    dt_batch,
    dt_step,
    dt_head,
    B_batch,
    B_step,
    B_group,
    B_state,
    C_batch,
    C_step,
    C_group,
    C_state,
    DT_SOFTPLUS: tl.constexpr,
    SAVE_STATES: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes y, the last state and the states between the chunks; one program for each block of a head's channels.

    Consecutive programs are the heads of a sequence, which read the same B and C.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(headdim, BLOCK_P)
    row = (program // blocks).to(tl.int64)
    batch = row // heads
    head = row % heads
    group = head // heads_per_group
    num_rows = tl.num_programs(0).to(tl.int64) // blocks

    steps = tl.arange(0, CHUNK)
    channels = (program % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_N)
    in_state = (channels[:, None] < headdim) & (columns[None, :] < d_state)
    state_offsets = row * headdim * d_state + channels[:, None] * d_state + columns[None, :]
    x += batch * x_batch + head * x_head
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    y += (batch * length * heads + head) * headdim
    rate = tl.load(A + head)

    h = tl.zeros((BLOCK_P, BLOCK_N), WIDE)
    for start in range(0, length, CHUNK):
        times = start + steps
        biased = biased_steps(dt, dt_bias, times, length, dt_batch, dt_step, dt_head, batch, head, WIDE)
        step = step_sizes(biased, times, length, DT_SOFTPLUS)
        log_decay = log2_decays(step, rate)
        sums = tl.cumsum(log_decay, 0)
        total = tl.sum(log_decay, 0)

        values = load_tile(x, times, channels, length, headdim, x_step, x_channel, OPERAND)
        inputs = load_tile(B, times, columns, length, d_state, B_step, B_state, OPERAND)
        outputs = load_tile(C, times, columns, length, d_state, C_step, C_state, OPERAND)

        mixing = product(outputs, tl.trans(inputs)) * pairwise_decays(sums, WIDE) * step[None, :]
        result = product(outputs, tl.trans(h)) * tl.exp2(sums.to(WIDE))[:, None] + product(mixing, values)
        if D is not None:
            result += values.to(WIDE) * tl.load(D + head).to(WIDE)
        y_pointers = y + times.to(tl.int64)[:, None] * (heads * headdim) + channels[None, :]
        in_y = (times[:, None] < length) & (channels[None, :] < headdim)
        tl.store(y_pointers, result.to(y.dtype.element_ty), mask=in_y)

        to_end = step * tl.exp2((total - sums).to(WIDE))
        h = h * tl.exp2(total.to(WIDE)) + product(tl.trans(values), inputs.to(WIDE) * to_end[:, None])
        if SAVE_STATES:
            if start + CHUNK < length:
                boundary = (start // CHUNK).to(tl.int64)
                tl.store(states + boundary * num_rows * headdim * d_state + state_offsets, h, mask=in_state)
    tl.store(last_state + state_offsets, h, mask=in_state)
