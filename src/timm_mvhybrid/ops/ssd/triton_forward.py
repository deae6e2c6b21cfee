"""The forward kernels of the scan, and the pieces that backward shares with them.

``step_kernel`` prepares the numbers that each step and head has one of. In ``forward_kernel`` a program owns one head
(or a block of its channels) of one sequence and walks the chunks with the state in registers. The formulas are those
of ``cpu``; δ_j multiplies the scores instead of x, so that x enters every product as it was given. ``product`` says
what is rounded on the way to the tensor cores.
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
def _round_to_tf32(v):
    """Rounds float32 to TF32's 10 bits; the tensor cores would cut off the others, which biases the sums."""
    bits = v.to(tl.uint32, bitcast=True)
    return ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def product(a, b):
    """Computes a @ b, summed in float32 (float64 for float64).

    Operands as wide as the sum are multiplied as they are, not in TF32. Where an operand is half, so is the other or
    it is a float32 product, as the state or decay-weighted scores. The latter is rounded once to as many bits as the
    half operand came with: to bfloat16, or beside float16 to TF32, because the state and the gradients may leave
    float16's range. The error that this adds to y is of the size of y's own rounding.
    """
    wide: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    if a.dtype == tl.bfloat16:
        b = b.to(tl.bfloat16)
    elif b.dtype == tl.bfloat16:
        a = a.to(tl.bfloat16)
    if a.dtype != b.dtype:
        a = _round_to_tf32(a.to(tl.float32))
        b = _round_to_tf32(b.to(tl.float32))
        return tl.dot(a, b, input_precision="tf32", out_dtype=wide)
    if INTERPRETED:
        if a.dtype == tl.bfloat16:  # numpy would multiply bit patterns
            a = a.to(tl.float32)
            b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee", out_dtype=wide)


@triton.jit
def tokens_at(times, length, REVERSE: tl.constexpr):
    """Says which tokens the scan is at at given times, in 64 bits for offsets; none past the end."""
    times = times.to(tl.int64)
    return length - 1 - times if REVERSE else times


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
def decays(steps, CHUNK: tl.constexpr):
    """Computes exp(s_i) and exp(s_last − s_j), (CHUNK,), and exp(s_last) of a chunk."""
    order = tl.arange(0, CHUNK)
    sums = tl.load(steps + CHUNK + order)
    rests = tl.load(steps + 2 * CHUNK + order)
    last_sum = tl.load(steps + 2 * CHUNK - 1)
    last_rest = tl.load(steps + 3 * CHUNK - 1)
    from_start = tl.exp2(sums) * tl.exp2(rests)
    return (
        from_start,
        tl.exp2((last_sum - sums) + (last_rest - rests)),
        tl.exp2(last_sum) * tl.exp2(last_rest),
    )


@triton.jit
def pairwise_decays(steps, CHUNK: tl.constexpr):
    """Computes exp(s_i − s_j) for j ≤ i, else 0."""
    order = tl.arange(0, CHUNK)
    sums = tl.load(steps + CHUNK + order)
    rests = tl.load(steps + 2 * CHUNK + order)
    exponents = (sums[:, None] - sums[None, :]) + (rests[:, None] - rests[None, :])
    # before exp: it may overflow above the diagonal
    return tl.exp2(tl.where(order[:, None] >= order[None, :], exponents, float("-inf")))


@triton.jit
def load_tile(base, rows, columns, valid_rows, num_columns, row_stride, column_stride, dtype: tl.constexpr):
    """Loads a matrix, zero outside."""
    pointers = base + rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    inside = valid_rows[:, None] & (columns[None, :] < num_columns)
    return tl.load(pointers, mask=inside, other=0.0).to(dtype)


@triton.jit
def forward_kernel(
    steps,
    x,
    B,
    C,
    D,
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
    B_batch,
    B_step,
    B_group,
    B_state,
    C_batch,
    C_step,
    C_group,
    C_state,
    SAVE_STATES: tl.constexpr,
    REVERSE: tl.constexpr,
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
    boundary_size = (tl.num_programs(0) // blocks).to(tl.int64) * headdim * d_state

    order = tl.arange(0, CHUNK)
    channels = (program % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_N)
    in_state = (channels[:, None] < headdim) & (columns[None, :] < d_state)
    state_offsets = row * headdim * d_state + channels[:, None] * d_state + columns[None, :]
    steps += row * tl.cdiv(length, CHUNK) * 3 * CHUNK
    x += batch * x_batch + head * x_head
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    y += (batch * length * heads + head) * headdim

    h = tl.zeros((BLOCK_P, BLOCK_N), WIDE)
    for start in range(0, length, CHUNK):
        times = start + order
        tokens, valid = tokens_at(times, length, REVERSE), times < length
        values = load_tile(x, tokens, channels, valid, headdim, x_step, x_channel, OPERAND)
        inputs = load_tile(B, tokens, columns, valid, d_state, B_step, B_state, OPERAND)
        outputs = load_tile(C, tokens, columns, valid, d_state, C_step, C_state, OPERAND)
        step = tl.load(steps + order)
        from_start, to_end, over_chunk = decays(steps, CHUNK)

        mixing = product(outputs, tl.trans(inputs)) * pairwise_decays(steps, CHUNK) * step[None, :]
        result = product(outputs, tl.trans(h)) * from_start[:, None] + product(mixing, values)
        if D is not None:
            result += values.to(WIDE) * tl.load(D + head).to(WIDE)
        y_pointers = y + tokens[:, None] * (heads * headdim) + channels[None, :]
        in_y = valid[:, None] & (channels[None, :] < headdim)
        tl.store(y_pointers, result.to(y.dtype.element_ty), mask=in_y)

        h = h * over_chunk + product(tl.trans(values), inputs.to(WIDE) * (to_end * step)[:, None])
        if SAVE_STATES:
            if start + CHUNK < length:
                boundary = states + (start // CHUNK) * boundary_size
                tl.store(boundary + state_offsets, h, mask=in_state)
        steps += 3 * CHUNK
    tl.store(last_state + state_offsets, h, mask=in_state)
