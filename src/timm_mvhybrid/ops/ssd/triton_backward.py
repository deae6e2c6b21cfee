"""The backward kernels of the scan: gradients of the states between the chunks, then of all chunks at once.

``state_gradient_kernel`` walks each head's chunks from the end, as forward does from the start, and writes the
gradient of the state at every boundary. With these, and the states that forward saved, the chunks are independent: a
program of ``head_gradient_kernel`` takes one chunk of a head, and one of ``group_gradient_kernel`` a chunk and several
heads of a group in turn. What the heads share is therefore summed in registers, in a fixed order and without atomics:
the gradients of B, of C and of their scores. What a step and head has one of is left to ``step_gradient_kernel``.
"""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .triton_tile import decays, load_tile, pairwise_decays, product, tokens_at


@triton.jit
def state_gradient_kernel(
    steps,
    grad_y,
    grad_last_state,
    grad_states,
    C,
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
    C_batch,
    C_step,
    C_group,
    C_state,
    REVERSE: tl.constexpr,
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
    boundary_size = (tl.num_programs(0) // blocks).to(tl.int64) * headdim * d_state

    order = tl.arange(0, CHUNK)
    channels = (program % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_N)
    in_state = (channels[:, None] < headdim) & (columns[None, :] < d_state)
    state_offsets = row * headdim * d_state + channels[:, None] * d_state + columns[None, :]
    chunks = tl.cdiv(length, CHUNK)
    steps += row * chunks * 3 * CHUNK
    grad_y += batch * grad_batch + head * grad_head
    C += batch * C_batch + group * C_group

    if grad_last_state is None:
        carry = tl.zeros((BLOCK_P, BLOCK_N), WIDE)
    else:
        grad_last_state += batch * last_batch + head * last_head
        carry = load_tile(
            grad_last_state, channels, columns, channels < headdim, d_state, last_channel, last_column, WIDE
        )
    for steps_back in range(1, chunks):
        chunk = chunks - steps_back
        times = chunk * CHUNK + order
        tokens, valid = tokens_at(times, length, REVERSE), times < length
        grad = load_tile(grad_y, tokens, channels, valid, headdim, grad_step, grad_channel, OPERAND)
        outputs = load_tile(C, tokens, columns, valid, d_state, C_step, C_state, OPERAND)
        from_start, _, over_chunk = decays(steps + chunk * 3 * CHUNK, CHUNK)
        carry = carry * over_chunk + product(tl.trans(grad), outputs.to(WIDE) * from_start[:, None])
        boundary = grad_states + (chunk - 1) * boundary_size
        tl.store(boundary + state_offsets, carry, mask=in_state)


@triton.jit
def load_start(states, chunk, channels, columns, headdim, d_state, boundary_size, dtype: tl.constexpr):
    """Loads the state that a chunk starts from: zero for the first, else that of the boundary before."""
    states += (chunk - 1) * boundary_size
    inside = channels < tl.where(chunk > 0, headdim, 0)
    return load_tile(states, channels, columns, inside, d_state, d_state, 1, dtype)


@triton.jit
def load_end(
    grad_states,
    grad_last_state,
    last_offset,
    chunk,
    chunks,
    channels,
    columns,
    headdim,
    d_state,
    boundary_size,
    last_channel,
    last_column,
    dtype: tl.constexpr,
):
    """Loads the gradient of the state that a chunk ends with: the last state's, else that of the boundary after."""
    is_last = chunk + 1 == chunks
    grad_states += chunk * boundary_size
    inside = channels < tl.where(is_last, 0, headdim)
    carry = load_tile(grad_states, channels, columns, inside, d_state, d_state, 1, dtype)
    if grad_last_state is not None:
        grad_last_state += last_offset
        inside = channels < tl.where(is_last, headdim, 0)
        carry += load_tile(
            grad_last_state, channels, columns, inside, d_state, last_channel, last_column, dtype
        )
    return carry


@triton.jit
def head_gradient_kernel(
    steps,
    grad_y,
    grad_last_state,
    grad_states,
    states,
    x,
    B,
    C,
    D,
    grad_x,
    grad_D,
    grad_sums,
    grad_over_chunk,
    grad_driven,
    batch_size,
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
    REVERSE: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes the gradients of what belongs to one head, of a chunk; one program for each block of its channels.

    Of the steps it leaves, by (batch, heads, chunks, blocks): grad_sums, the gradient of s_i, and grad_driven, the
    part of δ's gradient that comes by δ x, a number a step each; grad_over_chunk, which all log-decays of the chunk
    have in common; and grad_D, a part of D's gradient.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(headdim, BLOCK_P)
    chunks = tl.cdiv(length, CHUNK)
    block = program % blocks
    head = ((program // blocks) % heads).to(tl.int64)
    chunk = ((program // blocks // heads) % chunks).to(tl.int64)
    batch = (program // blocks // heads // chunks).to(tl.int64)
    row = batch * heads + head
    group = head // heads_per_group

    order = tl.arange(0, CHUNK)
    times = chunk * CHUNK + order
    tokens, valid = tokens_at(times, length, REVERSE), times < length
    columns = tl.arange(0, BLOCK_N)
    channels = block * BLOCK_P + tl.arange(0, BLOCK_P)
    x += batch * x_batch + head * x_head
    grad_y += batch * grad_batch + head * grad_head
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    place = (row * chunks + chunk) * blocks + block
    steps += (row * chunks + chunk) * 3 * CHUNK
    step = tl.load(steps + order)
    from_start, to_end, over_chunk = decays(steps, CHUNK)
    boundary_size = (batch_size * heads).to(tl.int64) * headdim * d_state
    row_offset = row * headdim * d_state

    values = load_tile(x, tokens, channels, valid, headdim, x_step, x_channel, OPERAND)
    grad = load_tile(grad_y, tokens, channels, valid, headdim, grad_step, grad_channel, OPERAND)
    inputs = load_tile(B, tokens, columns, valid, d_state, B_step, B_state, OPERAND)
    outputs = load_tile(C, tokens, columns, valid, d_state, C_step, C_state, OPERAND)

    mixing = product(outputs, tl.trans(inputs)) * pairwise_decays(steps, CHUNK)
    grad_values = product(tl.trans(mixing), grad)
    through = product(grad, tl.trans(values)) * mixing * step[None, :]
    # the diagonal decays nothing; float64, because the terms of later steps cancel between rows and columns
    through = tl.where(order[:, None] > order[None, :], through, 0.0).to(tl.float64)
    through_pairs = tl.sum(through, 1) - tl.sum(through, 0)

    # the states come last: they would take the registers that the scores need
    h = load_start(states + row_offset, chunk, channels, columns, headdim, d_state, boundary_size, WIDE)
    carry = load_end(
        grad_states + row_offset,
        grad_last_state,
        batch * last_batch + head * last_head,
        chunk,
        chunks,
        channels,
        columns,
        headdim,
        d_state,
        boundary_size,
        last_channel,
        last_column,
        WIDE,
    )
    through_chunk = tl.sum(tl.sum(carry * h, 1), 0) * over_chunk

    received = product(outputs, tl.trans(h)) * from_start[:, None]
    through_start = tl.sum(received * grad.to(WIDE), 1)
    carried = product(inputs, tl.trans(carry)) * to_end[:, None]
    through_end = tl.sum(carried * values.to(WIDE), 1) * step
    grad_values += carried

    through_all = through_pairs + through_start.to(tl.float64) - through_end.to(tl.float64)
    tl.store(grad_sums + place * CHUNK + order, through_all)
    tl.store(grad_over_chunk + place, through_chunk.to(tl.float64) + tl.sum(through_end.to(tl.float64), 0))
    tl.store(grad_driven + place * CHUNK + order, tl.sum(grad_values * values.to(WIDE), 1))
    grad_values *= step[:, None]
    if D is not None:
        wide_grad = grad.to(WIDE)
        grad_values += wide_grad * tl.load(D + head).to(WIDE)
        tl.store(grad_D + place, tl.sum(tl.sum(wide_grad * values.to(WIDE), 1), 0))
    x_rows = (batch * length + tokens) * heads + head
    x_pointers = grad_x + x_rows[:, None] * headdim + channels[None, :]
    in_x = valid[:, None] & (channels[None, :] < headdim)
    tl.store(x_pointers, grad_values.to(grad_x.dtype.element_ty), mask=in_x)


@triton.jit
def group_gradient_kernel(
    steps,
    grad_y,
    grad_last_state,
    grad_states,
    states,
    x,
    B,
    C,
    grad_B,
    grad_C,
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
    B_batch,
    B_step,
    B_group,
    B_state,
    C_batch,
    C_step,
    C_group,
    C_state,
    REVERSE: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes the gradients of B and C of a chunk, summed over one of ``splits`` equal parts of a group's heads.

    The parts are left to the caller to add, (splits, batch, length, groups, d_state).
    """
    program = tl.program_id(0)
    split = (program % splits).to(tl.int64)
    group = ((program // splits) % groups).to(tl.int64)
    chunks = tl.cdiv(length, CHUNK)
    chunk = ((program // splits // groups) % chunks).to(tl.int64)
    batch = (program // splits // groups // chunks).to(tl.int64)
    heads_per_split = heads_per_group // splits
    boundary_size = (batch_size * heads).to(tl.int64) * headdim * d_state

    order = tl.arange(0, CHUNK)
    times = chunk * CHUNK + order
    tokens, valid = tokens_at(times, length, REVERSE), times < length
    columns = tl.arange(0, BLOCK_N)
    grad_scores = tl.zeros((CHUNK, CHUNK), WIDE)
    grad_inputs = tl.zeros((CHUNK, BLOCK_N), WIDE)
    grad_outputs = tl.zeros((CHUNK, BLOCK_N), WIDE)
    for part in range(0, heads_per_split):
        head = group * heads_per_group + split * heads_per_split + part
        row = batch * heads + head
        row_offset = row * headdim * d_state
        row_x = x + batch * x_batch + head * x_head
        row_grad = grad_y + batch * grad_batch + head * grad_head
        row_steps = steps + (row * chunks + chunk) * 3 * CHUNK
        grad_pairs = tl.zeros((CHUNK, CHUNK), WIDE)
        for first in range(0, headdim, BLOCK_P):
            channels = first + tl.arange(0, BLOCK_P)
            values = load_tile(row_x, tokens, channels, valid, headdim, x_step, x_channel, OPERAND)
            grad = load_tile(row_grad, tokens, channels, valid, headdim, grad_step, grad_channel, OPERAND)
            grad_pairs += product(grad, tl.trans(values))
            from_start, to_end, _ = decays(row_steps, CHUNK)
            h = load_start(
                states + row_offset, chunk, channels, columns, headdim, d_state, boundary_size, WIDE
            )
            grad_outputs += product(grad, h) * from_start[:, None]
            carry = load_end(
                grad_states + row_offset,
                grad_last_state,
                batch * last_batch + head * last_head,
                chunk,
                chunks,
                channels,
                columns,
                headdim,
                d_state,
                boundary_size,
                last_channel,
                last_column,
                WIDE,
            )
            to_end *= tl.load(row_steps + order)
            grad_inputs += product(values, carry) * to_end[:, None]
        step = tl.load(row_steps + order)
        grad_scores += grad_pairs * pairwise_decays(row_steps, CHUNK) * step[None, :]

    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    inputs = load_tile(B, tokens, columns, valid, d_state, B_step, B_state, OPERAND)
    outputs = load_tile(C, tokens, columns, valid, d_state, C_step, C_state, OPERAND)
    grad_outputs += product(grad_scores, inputs)
    grad_inputs += product(tl.trans(grad_scores), outputs)
    matrix_rows = ((split * batch_size + batch) * length + tokens) * groups + group
    offsets = matrix_rows[:, None] * d_state + columns[None, :]
    in_matrix = valid[:, None] & (columns[None, :] < d_state)
    tl.store(grad_B + offsets, grad_inputs.to(grad_B.dtype.element_ty), mask=in_matrix)
    tl.store(grad_C + offsets, grad_outputs.to(grad_C.dtype.element_ty), mask=in_matrix)
