"""The backward kernel of the selective scan."""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .triton_tile import (
    LN_2,
    LOG2_E,
    SOFTPLUS_THRESHOLD,
    add_compensated,
    load_steps,
    locate,
    place_of,
    sigmoid,
    step_of,
    step_sizes,
    with_step,
)


@triton.jit(do_not_specialize=["length"])
def backward_kernel(
    grad_y,
    grad_last_state,
    states,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    grad_u,
    grad_delta,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_z,
    grad_delta_bias,
    grad_y_batch,
    grad_y_step,
    grad_y_channel,
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
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    REPEAT: tl.constexpr,
    STATES: tl.constexpr,
    LANES: tl.constexpr,
):
    """Walks one sequence from its end, with the adjoint state of one block of channels in registers.

    The states of a tile are computed again from the saved state before its chunk. What is summed over time or channels
    is written as the sums within this program: grad_A, grad_D and grad_delta_bias for each sequence, grad_B and grad_C
    for each block of channels.
    """
    dtype: tl.constexpr = states.dtype.element_ty
    batch, group, block = locate(groups, channels, REPEAT * LANES)
    c = block * (REPEAT * LANES) + (tl.arange(0, REPEAT)[:, None] * LANES + tl.arange(0, LANES)[None, :])
    d = group * channels + c
    n = tl.arange(0, STATES).to(tl.int64)
    steps = tl.arange(0, STEPS).to(tl.int64)
    index = tl.arange(0, STEPS)[:, None, None, None]
    in_block, in_state = (c < channels)[None], (n < D_STATE)[None]
    in_both = (c < channels)[:, None, :] & (n < D_STATE)[None, :, None]
    d_inner = groups * channels
    state_size = group * 0 + d_inner * D_STATE
    of_state = batch * state_size + (group * D_STATE + n[None, :, None]) * channels + c[:, None, :]
    of_matrix = d[:, None, :] * D_STATE + n[None, :, None]

    # exp(δ A) = 2^(δ A log2 e)
    rate = tl.load(A + of_matrix, mask=in_both, other=0.0).to(dtype) * LOG2_E
    bias = None
    if delta_bias is not None:
        bias = tl.load(delta_bias + d[None], mask=in_block, other=0.0).to(dtype)
        sum_bias = tl.zeros([STEPS, REPEAT, LANES], dtype)
        lost_bias = sum_bias
    if D is not None:
        skip = tl.load(D + d[None], mask=in_block, other=0.0).to(dtype)
        sum_D = tl.zeros([STEPS, REPEAT, LANES], dtype)
        lost_D = sum_D
    sum_A = tl.zeros([REPEAT, STATES, LANES], dtype)
    carry = tl.zeros([REPEAT, STATES, LANES], dtype)
    if grad_last_state is not None:
        carry = tl.load(grad_last_state + of_state, mask=in_both, other=0.0).to(dtype)
    grad_y += batch * grad_y_batch + d[None] * grad_y_channel
    u += batch * u_batch + d[None] * u_channel
    delta += batch * delta_batch + d[None] * delta_channel
    B += batch * B_batch + group * B_group + n[None] * B_state
    C += batch * C_batch + group * C_group + n[None] * C_state
    if z is not None:
        z += batch * z_batch + d[None] * z_channel
        grad_z += batch * length * d_inner + d[None]
    grad_u += batch * length * d_inner + d[None]
    grad_delta += batch * length * d_inner + d[None]
    of_block = ((block * batch_size + batch) * length * groups + group) * D_STATE + n[None]
    grad_B += of_block
    grad_C += of_block

    num_tiles = tl.cdiv(length, STEPS)
    for i in range(num_tiles):
        tile = num_tiles - 1 - i
        chunk = tile * STEPS // CHUNK
        h = tl.load(
            states + (group * 0 + chunk) * batch_size * state_size + of_state, mask=in_both, other=0.0
        )
        for earlier in range(chunk * (CHUNK // STEPS), tile):
            t = earlier * STEPS + steps
            inside = (t < length)[:, None, None] & in_block
            x = load_steps(u, u_step, t, length, in_block, REVERSE).to(dtype)
            raw = load_steps(delta, delta_step, t, length, in_block, REVERSE).to(dtype)
            b = load_steps(B, B_step, t, length, in_state, REVERSE).to(dtype)
            step = step_sizes(raw, bias, DELTA_SOFTPLUS, inside)
            decay = tl.exp2(step[:, :, None, :] * rate[None])
            driven = (step * x)[:, :, None, :] * b[:, None, :, None]
            for s in tl.static_range(STEPS):
                h = step_of(decay, index, s) * h + step_of(driven, index, s)

        t = tile * STEPS + steps
        inside = (t < length)[:, None, None] & in_block
        inside_states = (t < length)[:, None] & in_state
        x = load_steps(u, u_step, t, length, in_block, REVERSE).to(dtype)
        raw = load_steps(delta, delta_step, t, length, in_block, REVERSE).to(dtype)
        b = load_steps(B, B_step, t, length, in_state, REVERSE).to(dtype)[:, None, :, None]
        c_out = load_steps(C, C_step, t, length, in_state, REVERSE).to(dtype)
        grad_out = load_steps(grad_y, grad_y_step, t, length, in_block, REVERSE).to(dtype)
        if z is not None:
            gate = load_steps(z, z_step, t, length, in_block, REVERSE).to(dtype)
            opened = sigmoid(gate)
            slope = grad_out * opened * (1.0 + gate * (1.0 - opened))
            grad_out *= gate * opened
        step = step_sizes(raw, bias, DELTA_SOFTPLUS, inside)
        driven = (step * x)[:, :, None, :]
        cotangent = grad_out[:, :, None, :]

        decay = tl.exp2(step[:, :, None, :] * rate[None])
        trajectory = driven * b
        kept = tl.zeros([STEPS, REPEAT, STATES, LANES], dtype)
        for s in tl.static_range(STEPS):
            remainder = step_of(decay, index, s) * h
            h = remainder + step_of(trajectory, index, s)
            kept = with_step(kept, index, s, remainder)
            trajectory = with_step(trajectory, index, s, h)
        place = place_of(t, length, REVERSE)
        of_step = place[:, None] * (groups * D_STATE)
        tl.store(grad_C + of_step, tl.sum(tl.sum(trajectory * cotangent, axis=1), axis=2), mask=inside_states)
        if z is not None:
            out = tl.sum(trajectory * c_out[:, None, :, None], axis=2)
            if D is not None:
                out += skip * x
            tl.store(
                grad_z + place[:, None, None] * d_inner,
                (slope * out).to(grad_z.dtype.element_ty),
                mask=inside,
            )

        adjoint = cotangent * c_out[:, None, :, None]
        for s in tl.static_range(STEPS - 1, -1, -1):
            g = step_of(adjoint, index, s) + carry
            carry = step_of(decay, index, s) * g
            adjoint = with_step(adjoint, index, s, g)
        tl.store(grad_B + of_step, tl.sum(tl.sum(adjoint * driven, axis=1), axis=2), mask=inside_states)
        sensitivity = adjoint * kept
        sum_A += tl.sum(sensitivity * step[:, :, None, :], axis=0)
        grad_driven = tl.sum(adjoint * b, axis=2)
        grad_step = tl.sum(sensitivity * rate[None], axis=2) * LN_2 + grad_driven * x
        if DELTA_SOFTPLUS:
            if bias is not None:
                raw += bias
            grad_step *= tl.where(raw > SOFTPLUS_THRESHOLD, 1.0, sigmoid(raw))
        grad_step = tl.where(inside, grad_step, 0.0)
        grad_x = grad_driven * step
        if D is not None:
            grad_x += grad_out * skip
            sum_D, lost_D = add_compensated(sum_D, lost_D, grad_out * x)
        if bias is not None:
            sum_bias, lost_bias = add_compensated(sum_bias, lost_bias, grad_step)
        out = place[:, None, None] * d_inner
        tl.store(grad_u + out, grad_x.to(grad_u.dtype.element_ty), mask=inside)
        tl.store(grad_delta + out, grad_step.to(grad_delta.dtype.element_ty), mask=inside)

    tl.store(grad_A + batch * state_size + of_matrix, sum_A, mask=in_both)
    if D is not None:
        tl.store(grad_D + batch * d_inner + d, tl.sum(sum_D, axis=0), mask=c < channels)
    if bias is not None:
        tl.store(grad_delta_bias + batch * d_inner + d, tl.sum(sum_bias, axis=0), mask=c < channels)
