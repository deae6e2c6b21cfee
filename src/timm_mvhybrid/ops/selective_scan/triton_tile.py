"""What both kernels of the selective scan do with a tile: a few time steps of one block of channels, in registers.

A tile of states is [steps, repeat, states, lanes], with repeat · lanes channels. Triton spreads the last axes over the
threads of a warp first, so that with 8 lanes and 16 states a thread holds every step of 4 states of ``repeat``
channels. It cannot index registers; but where an axis lies wholly in one thread's registers, as steps do, a mask over
it is known at compile time, so that :func:`step_of` and :func:`with_step` cost no instruction.
"""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
SOFTPLUS_THRESHOLD = tl.constexpr(20.0)


@triton.jit
def locate(groups, channels, BLOCK: tl.constexpr):
    """Says which sequence, group and block of channels a program owns; neighbours share B and C."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK)
    batch = (program // (blocks * groups)).to(tl.int64)
    group = (program // blocks % groups).to(tl.int64)
    return batch, group, program % blocks


@triton.jit
def step_of(tile, index, step):
    """Reads one step of a tile; −0.0 changes no number that it is added to, so the sum is compiled away."""
    return tl.sum(tl.where(index == step, tile, -0.0), axis=0)


@triton.jit
def with_step(tile, index, step, row):
    """Writes one step of a tile."""
    return tl.where(index == step, row[None], tile)


@triton.jit
def place_of(t, length, REVERSE: tl.constexpr):
    """Says which token a step of the scan reads and writes."""
    if REVERSE:
        t = length - 1 - t
    return t


@triton.jit
def load_steps(pointers, stride, t, length, across, REVERSE: tl.constexpr):
    """Loads the steps ``t`` of the scan, [steps, ...], with zero beyond the last one and outside ``across``."""
    if len(across.shape) == 3:
        t = t[:, None, None]
    else:
        t = t[:, None]
    return tl.load(pointers + place_of(t, length, REVERSE) * stride, mask=(t < length) & across, other=0.0)


@triton.jit
def step_sizes(delta, bias, softplus_delta: tl.constexpr, inside):
    """Computes δ; zero outside, so that a step beyond the end leaves the state alone."""
    if bias is not None:
        delta += bias
    if softplus_delta:
        delta = softplus(delta)
    return tl.where(inside, delta, 0.0)


@triton.jit
def add_compensated(total, lost, x):
    """Adds to a sum and keeps what rounding lost, so that a long walk is as accurate as a pairwise sum."""
    x = x - lost
    raised = total + x
    return raised, (raised - total) - x


@triton.jit
def softplus(x):
    """Computes log(1 + exp(x)) to an ulp or two at both ends, and x itself above torch's threshold.

    log1p(e) = 2 artanh(e / (2 + e)), whose argument is at most 1/3: a power series gives every digit, where the
    hardware's logarithm would lose those of a small e.
    """
    e = _exp_of_minus_abs(x)
    s = e / (2.0 + e)
    TERMS: tl.constexpr = 18 if x.dtype == tl.float64 else 8
    series = tl.full(x.shape, 1.0 / (2 * TERMS + 1), x.dtype)
    for k in tl.static_range(TERMS - 1):
        series = series * (s * s) + 1.0 / (2 * (TERMS - k) - 1)
    log1p = 2.0 * s + 2.0 * s * (s * s * series)
    return tl.where(x > SOFTPLUS_THRESHOLD, x, tl.maximum(x, 0.0) + log1p)


@triton.jit
def sigmoid(x):
    """Computes 1 / (1 + exp(−x)) to an ulp or two at both ends."""
    e = _exp_of_minus_abs(x)
    return tl.where(x >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _exp_of_minus_abs(x):
    """Computes exp(−|x|) to an ulp as 2^k · exp(r) with |r| ≤ ln 2 / 2.

    The hardware's powers of two are less exact, and −|x| · log2 e, once rounded, costs as many bits as |x| has.
    """
    x = -tl.abs(x)
    # NaN must stay NaN, and 2^−1154 is zero
    x = tl.where(x < -800.0, -800.0, x)
    k = tl.floor(x * LOG2_E + 0.5)
    # ln 2 in two parts, of which k times the first, 355/512, is exact
    r = (x - k * 0.693359375) + k * 2.12194440054690583e-4
    TERMS: tl.constexpr = 14 if x.dtype == tl.float64 else 8
    series = tl.full(x.shape, 1.0, x.dtype)
    for n in tl.static_range(TERMS):
        series = series * (r * (1.0 / (TERMS - n))) + 1.0
    return tl.exp2(k) * series
