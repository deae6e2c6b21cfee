"""The forward kernel of the selective scan."""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .triton_tile import LOG2_E, load_steps, locate, place_of, sigmoid, step_of, step_sizes, with_step


@triton.jit(do_not_specialize=["length"])
def forward_kernel(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    y,
    last_state,
    states,
    u_batch,
    u_step,
    u_channel,
    delta_batch,
    delta_step,
    delta_channel,
    B_batch,
    B_step,
    B_group,
    B_state,
    C_batch,
    C_step,
    C_group,
    C_state,
    z_batch,
    z_step,
    z_channel,
    batch_size,
    length,
    groups,
    channels,
    D_STATE: tl.constexpr,
    DELTA_SOFTPLUS: tl.constexpr,
    SAVE_STATES: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    REPEAT: tl.constexpr,
    STATES: tl.constexpr,
    LANES: tl.constexpr,
):
    """Walks one sequence with the state of one block of channels in registers, a tile of STEPS at a time.

    The next tile is loaded while this one is worked off. ``states`` takes the state before every CHUNK steps.
    """
    dtype: tl.constexpr = last_state.dtype.element_ty
    batch, group, block = locate(groups, channels, REPEAT * LANES)
    c = block * (REPEAT * LANES) + (tl.arange(0, REPEAT)[:, None] * LANES + tl.arange(0, LANES)[None, :])
    d = group * channels + c
    n = tl.arange(0, STATES).to(tl.int64)
    steps = tl.arange(0, STEPS).to(tl.int64)
    index = tl.arange(0, STEPS)[:, None, None, None]
    in_block, in_state = (c < channels)[None], (n < D_STATE)[None]
    in_both = (c < channels)[:, None, :] & (n < D_STATE)[None, :, None]
    state_size = group * 0 + groups * channels * D_STATE
    of_state = batch * state_size + (group * D_STATE + n[None, :, None]) * channels + c[:, None, :]

    # exp(δ A) = 2^(δ A log2 e)
    rate = tl.load(A + d[:, None, :] * D_STATE + n[None, :, None], mask=in_both, other=0.0).to(dtype) * LOG2_E
    bias = None
    if delta_bias is not None:
        bias = tl.load(delta_bias + d[None], mask=in_block, other=0.0).to(dtype)
    if D is not None:
        skip = tl.load(D + d[None], mask=in_block, other=0.0).to(dtype)
    u += batch * u_batch + d[None] * u_channel
    delta += batch * delta_batch + d[None] * delta_channel
    B += batch * B_batch + group * B_group + n[None] * B_state
    C += batch * C_batch + group * C_group + n[None] * C_state
    if z is not None:
        z += batch * z_batch + d[None] * z_channel
    y += batch * length * groups * channels + d[None]

    h = tl.zeros([REPEAT, STATES, LANES], dtype)
    next_u = load_steps(u, u_step, steps, length, in_block, REVERSE)
    next_delta = load_steps(delta, delta_step, steps, length, in_block, REVERSE)
    next_B = load_steps(B, B_step, steps, length, in_state, REVERSE)
    next_C = load_steps(C, C_step, steps, length, in_state, REVERSE)
    for tile in range(tl.cdiv(length, STEPS)):
        if SAVE_STATES:
            if tile * STEPS % CHUNK == 0:
                chunk = group * 0 + tile * STEPS // CHUNK
                tl.store(states + chunk * batch_size * state_size + of_state, h, mask=in_both)
        t = tile * STEPS + steps
        inside = (t < length)[:, None, None] & in_block
        x, step = next_u.to(dtype), step_sizes(next_delta.to(dtype), bias, DELTA_SOFTPLUS, inside)
        b, c_out = next_B.to(dtype), next_C.to(dtype)
        next_u = load_steps(u, u_step, t + STEPS, length, in_block, REVERSE)
        next_delta = load_steps(delta, delta_step, t + STEPS, length, in_block, REVERSE)
        next_B = load_steps(B, B_step, t + STEPS, length, in_state, REVERSE)
        next_C = load_steps(C, C_step, t + STEPS, length, in_state, REVERSE)
        if z is not None:
            gate = load_steps(z, z_step, t, length, in_block, REVERSE).to(dtype)

        decay = tl.exp2(step[:, :, None, :] * rate[None])
        trajectory = (step * x)[:, :, None, :] * b[:, None, :, None]
        for s in tl.static_range(STEPS):
            h = step_of(decay, index, s) * h + step_of(trajectory, index, s)
            trajectory = with_step(trajectory, index, s, h)
        out = tl.sum(trajectory * c_out[:, None, :, None], axis=2)
        if D is not None:
            out += skip * x
        if z is not None:
            out *= gate * sigmoid(gate)
        place = place_of(t, length, REVERSE)[:, None, None]
        tl.store(y + place * (groups * channels), out.to(y.dtype.element_ty), mask=inside)
    tl.store(last_state + of_state, h, mask=in_both)
