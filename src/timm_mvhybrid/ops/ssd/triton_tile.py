"""What the kernels of the scan share: tokens, tiles, their products, and the decays of a chunk.

``product`` says what is rounded on the way to the tensor cores.
"""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def _round_to_tf32(v):
    """Rounds float32 to TF32's 10 bits; the tensor cores would cut off the others, which biases the sums."""
    bits = v.to(tl.uint32, bitcast=True)
    return ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)


INTERPRETED = tl.constexpr(not isinstance(_round_to_tf32, triton.JITFunction))
"""Whether TRITON_INTERPRET=1 was set at import, so that kernels run in numpy, on the CPU."""


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
