"""The backward kernels of the scan: gradients of the states between the chunks, then all chunks at once.

The first kernel walks each head's chunks from the end, as forward does from the start, and writes the gradient of the
state at every boundary. With these, and the states that forward saved, the chunks are independent: a program of the
second kernel takes one chunk and several heads of a group in turn. What the heads share is therefore summed in
registers, in a fixed order and without atomics: the gradients of B, of C and of their scores.
"""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .triton_forward import (
    SOFTPLUS_THRESHOLD,
    biased_steps,
    load_tile,
    log2_decays,
    pairwise_decays,
    product,
    step_sizes,
)


@triton.jit
def state_gradient_kernel(
    grad_y,
    grad_last_state,
    grad_states,
    dt,
    A,
    C,
    dt_bias,
    length,
    heads,
    heads_per_group,
    headdim,
    d_state,
    grad_batch,
    grad_step,
    grad_head,
    grad_channel,
    last_batch,
    last_head,
    last_channel,
    last_column,
    dt_batch,
    dt_step,
    dt_head,
    C_batch,
    C_step,
    C_group,
    C_state,
    DT_SOFTPLUS: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes the gradients of the states between the chunks; programs as in forward."""
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
    grad_y += batch * grad_batch + head * grad_head
    C += batch * C_batch + group * C_group
    rate = tl.load(A + head)

    if grad_last_state is None:
        carry = tl.zeros((BLOCK_P, BLOCK_N), WIDE)
    else:
        grad_last_state += batch * last_batch + head * last_head
        carry = load_tile(
            grad_last_state, channels, columns, headdim, d_state, last_channel, last_column, WIDE
        )
    last_chunk = (length - 1) // CHUNK
    for behind in range(0, last_chunk):
        chunk = last_chunk - behind
        times = chunk * CHUNK + steps
        biased = biased_steps(dt, dt_bias, times, length, dt_batch, dt_step, dt_head, batch, head, WIDE)
        log_decay = log2_decays(step_sizes(biased, times, length, DT_SOFTPLUS), rate)
        sums = tl.cumsum(log_decay, 0)
        total = tl.sum(log_decay, 0)

        grad = load_tile(grad_y, times, channels, length, headdim, grad_step, grad_channel, OPERAND)
        outputs = load_tile(C, times, columns, length, d_state, C_step, C_state, OPERAND)
        from_start = tl.exp2(sums.to(WIDE))[:, None]
        carry = carry * tl.exp2(total.to(WIDE)) + product(tl.trans(grad), outputs.to(WIDE) * from_start)
        boundary = (chunk - 1).to(tl.int64)
        tl.store(grad_states + boundary * num_rows * headdim * d_state + state_offsets, carry, mask=in_state)


@triton.jit
def chunk_gradient_kernel(
    grad_y,
    grad_last_state,
    grad_states,
    states,
    x,
    dt,
    A,
    B,
    C,
    D,
    dt_bias,
    grad_x,
    grad_dt,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_dt_bias,
    batch_size,
    length,
    heads,
    groups,
    heads_per_group,
    splits,
    headdim,
    d_state,
    grad_batch,
    grad_step,
    grad_head,
    grad_channel,
    last_batch,
    last_head,
    last_channel,
    last_column,
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
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes the gradients of a chunk for one of ``splits`` equal parts of a group's heads.

    A head's channels come in blocks, one after the other. Sums over more than one program are left to the caller:
    grad_B and grad_C have a leading dimension for the splits, grad_dt one for the blocks, and grad_A, grad_D and
    grad_dt_bias are (chunks, batch, heads, blocks).
    """
    program = tl.program_id(0)
    split = (program % splits).to(tl.int64)
    group = ((program // splits) % groups).to(tl.int64)
    chunks = tl.cdiv(length, CHUNK)
    chunk = ((program // splits // groups) % chunks).to(tl.int64)
    batch = (program // splits // groups // chunks).to(tl.int64)
    blocks = tl.cdiv(headdim, BLOCK_P)
    heads_per_split = heads_per_group // splits

    times = chunk * CHUNK + tl.arange(0, CHUNK)
    valid = times < length
    order = tl.arange(0, CHUNK)
    columns = tl.arange(0, BLOCK_N)
    in_matrix = valid[:, None] & (columns[None, :] < d_state)
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    inputs = load_tile(B, times, columns, length, d_state, B_step, B_state, OPERAND)
    outputs = load_tile(C, times, columns, length, d_state, C_step, C_state, OPERAND)
    scores = product(outputs, tl.trans(inputs))

    grad_scores = tl.zeros((CHUNK, CHUNK), WIDE)
    grad_inputs = tl.zeros((CHUNK, BLOCK_N), WIDE)
    grad_outputs = tl.zeros((CHUNK, BLOCK_N), WIDE)
    for part in range(0, heads_per_split * blocks):
        block = part % blocks
        head = group * heads_per_group + split * heads_per_split + part // blocks
        channels = block * BLOCK_P + tl.arange(0, BLOCK_P)
        rate = tl.load(A + head)
        biased = biased_steps(dt, dt_bias, times, length, dt_batch, dt_step, dt_head, batch, head, WIDE)
        step = step_sizes(biased, times, length, DT_SOFTPLUS)
        log_decay = log2_decays(step, rate)
        sums = tl.cumsum(log_decay, 0)
        total = tl.sum(log_decay, 0)
        decays = pairwise_decays(sums, WIDE)
        from_start = tl.exp2(sums.to(WIDE))
        to_end = tl.exp2((total - sums).to(WIDE))

        x_head_base = x + batch * x_batch + head * x_head
        values = load_tile(x_head_base, times, channels, length, headdim, x_step, x_channel, OPERAND)
        grad_base = grad_y + batch * grad_batch + head * grad_head
        grad = load_tile(grad_base, times, channels, length, headdim, grad_step, grad_channel, OPERAND)

        weighted = product(grad, tl.trans(values)) * decays * step[None, :]
        grad_scores += weighted
        # the diagonal decays nothing; float64, because the terms of later steps cancel between rows and columns
        through = tl.where(order[:, None] > order[None, :], weighted * scores, 0.0).to(tl.float64)
        grad_sums = tl.sum(through, 1) - tl.sum(through, 0)

        # boundaries are numbered from the first chunk's end; before the first chunk the state is zero
        row_size = headdim * d_state
        row = batch * heads + head
        num_rows = batch_size * heads
        start = states + ((chunk - 1) * num_rows + row) * row_size
        num_started = tl.where(chunk > 0, headdim, 0)
        h = load_tile(start, channels, columns, num_started, d_state, d_state, 1, WIDE)
        outgoing = product(grad, h) * from_start[:, None]
        grad_outputs += outgoing
        grad_sums += tl.sum(outgoing * outputs.to(WIDE), 1).to(tl.float64)

        is_last = chunk + 1 == chunks
        end = grad_states + (chunk * num_rows + row) * row_size
        carry = load_tile(end, channels, columns, tl.where(is_last, 0, headdim), d_state, d_state, 1, WIDE)
        if grad_last_state is not None:
            last = grad_last_state + batch * last_batch + head * last_head
            num_last = tl.where(is_last, headdim, 0)
            carry += load_tile(last, channels, columns, num_last, d_state, last_channel, last_column, WIDE)
        grad_inputs += product(values, carry) * (to_end * step)[:, None]
        carried = product(inputs, tl.trans(carry)) * to_end[:, None]
        through_end = (tl.sum(carried * values.to(WIDE), 1) * step).to(tl.float64)
        through_chunk = tl.sum(tl.sum(carry * h, 1), 0).to(tl.float64) * tl.exp2(total)
        # s_i sums the decays up to i, so each decay gathers the gradients of all later sums
        grad_rate = tl.cumsum(grad_sums - through_end, 0, reverse=True)
        grad_rate += through_chunk + tl.sum(through_end, 0)

        grad_values = product(tl.trans(scores * decays), grad) + carried
        grad_biased = grad_rate * rate.to(tl.float64)
        grad_biased += tl.sum(grad_values * values.to(WIDE), 1).to(tl.float64)
        if DT_SOFTPLUS:
            slope = tl.where(biased > SOFTPLUS_THRESHOLD, 1.0, 1.0 / (1.0 + tl.exp(-biased)))
            grad_biased *= slope.to(tl.float64)
        grad_values *= step[:, None]

        partial = ((chunk * batch_size + batch) * heads + head) * blocks + block
        tl.store(grad_A + partial, tl.sum(grad_rate * step.to(tl.float64), 0))
        if dt_bias is not None:
            tl.store(grad_dt_bias + partial, tl.sum(tl.where(valid, grad_biased, 0.0), 0))
        if D is not None:
            wide_grad = grad.to(WIDE)
            grad_values += wide_grad * tl.load(D + head).to(WIDE)
            tl.store(grad_D + partial, tl.sum(tl.sum(wide_grad * values.to(WIDE), 1), 0))
        token = (batch * length + times) * heads + head
        dt_offsets = (batch * 0 + block) * num_rows * length + token
        tl.store(grad_dt + dt_offsets, grad_biased.to(grad_dt.dtype.element_ty), mask=valid)
        x_pointers = grad_x + token[:, None] * headdim + channels[None, :]
        in_x = valid[:, None] & (channels[None, :] < headdim)
        tl.store(x_pointers, grad_values.to(grad_x.dtype.element_ty), mask=in_x)

    grad_outputs += product(grad_scores, inputs)
    grad_inputs += product(tl.trans(grad_scores), outputs)
    token = (split * batch_size + batch) * length + times
    offsets = (token[:, None] * groups + group) * d_state + columns[None, :]
    tl.store(grad_B + offsets, grad_inputs.to(grad_B.dtype.element_ty), mask=in_matrix)
    tl.store(grad_C + offsets, grad_outputs.to(grad_C.dtype.element_ty), mask=in_matrix)
