"""Records' bytes into packed rows, a whole batch at once: the work of a token is NumPy's, that of a record is short."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack
import numpy as np
from jaxtyping import Int

from anygpt_jax.errors import UserError

Batch = dict[str, np.ndarray]


def pack_rows(
    data: Sequence[bytes],
    offset: Int[np.ndarray, " n"],
    length: Int[np.ndarray, " n"],
    starts: Int[np.ndarray, " rows+1"],
    seq_len: int,
    pad: int,
    modality_of: Int[np.ndarray, " vocabulary"],
) -> Batch:
    """Rows [rows, seq_len] of pieces of records, one after another.

    `data` holds TokenRecords' bytes; piece i is the `length[i]` tokens from `offset[i]` of record i, and row r holds
    pieces starts[r] … starts[r + 1] - 1. The batch: tokens, targets (the next token of the same piece), segment_ids
    (1, 2, …; 0 is padding), positions (from 0 in every piece), modality (of the target): int32. loss_weights: float32,
    1 where the target is trained. A piece's last position has no target and no weight.
    UserError if a record's bytes are not what the plan or the vocabulary expects.
    """
    rows = len(starts) - 1
    size = rows * seq_len
    if not len(data):
        return _padding(rows, seq_len, pad)
    in_row = np.repeat(np.arange(rows), np.diff(starts))
    before = np.cumsum(length) - length
    begin = in_row * seq_len + before - before[starts[:-1][in_row]]
    end = begin + length

    tokens = np.full(size, pad, np.int32)
    flags: list[bool] = []  # runs of positions whose token is trained or not, over all rows
    runs: list[int] = []
    reached = 0
    unpack = msgpack.unpackb
    for raw, skip, n, at, stop in zip(
        data, offset.tolist(), length.tolist(), begin.tolist(), end.tolist(), strict=True
    ):
        if at > reached:  # padding before this row
            flags.append(False)
            runs.append(at - reached)
        reached = stop
        try:
            fields = unpack(raw)
            ids = np.frombuffer(fields["tokens"], fields["dtype"])
            spans = fields["spans"]
            covered = 0
            for span in spans:
                covered += span[0]
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise UserError(f"A record of the cache is damaged ({type(e).__name__}: {e}); tokenize again.") from e
        if covered != len(ids) or skip + n > len(ids) or (skip == 0 and n != len(ids) and n != seq_len):
            raise UserError(
                f"Record {fields.get('key')!r} has {len(ids)} tokens and not what its shard's lengths say; tokenize again."
            )
        if n == len(ids):
            tokens[at:stop] = ids
            for span in spans:
                runs.append(span[0])
                flags.append(span[3])
        else:
            tokens[at:stop] = ids[skip : skip + n]
            left, right = 0, 0
            for span in spans:
                left, right = right, right + span[0]
                inside = min(right, skip + n) - max(left, skip)
                if inside > 0:
                    runs.append(inside)
                    flags.append(span[3])
    runs.append(size - reached)
    flags.append(False)

    batch: Batch = {"tokens": tokens}
    # A piece's last position predicts nothing, nor does a row's, which may be padding before the next row.
    ends = np.concatenate([end - 1, np.arange(1, rows + 1) * seq_len - 1])
    targets = np.empty(size, np.int32)
    targets[:-1] = tokens[1:]
    targets[ends] = pad
    trained = np.repeat(np.array(flags, np.float32), runs)
    weights = np.empty(size, np.float32)
    weights[:-1] = trained[1:]
    weights[ends] = 0
    # From every piece to the next, the padding between them included.
    edges = np.append(begin, size)
    edges[0] = 0
    holds = np.diff(edges)
    segments = np.repeat((np.arange(len(begin)) - starts[:-1][in_row] + 1).astype(np.int32), holds)
    positions = np.arange(size, dtype=np.int32) - np.repeat(begin.astype(np.int32), holds)
    try:
        modality = modality_of[targets].astype(np.int32, copy=False)
    except IndexError as e:
        raise UserError(f"The cache holds ids its vocabulary does not ({tokens.max()}); tokenize again.") from e
    # Where nothing is predicted, nothing has a modality, whatever block the padding's id is in.
    modality[ends] = 0
    for a, b in zip([0, *end.tolist()], [int(begin[0]), *edges[1:].tolist()], strict=True):
        if a < b:
            segments[a:b] = positions[a:b] = modality[a:b] = 0
    batch |= {"targets": targets, "segment_ids": segments, "positions": positions, "modality": modality}
    batch["loss_weights"] = weights
    return {name: array.reshape(rows, seq_len) for name, array in batch.items()}


def _padding(rows: int, seq_len: int, pad: int) -> Batch:
    shape = (rows, seq_len)
    batch = {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions", "modality")}
    batch |= {name: np.full(shape, pad, np.int32) for name in ("tokens", "targets")}
    return batch | {"loss_weights": np.zeros(shape, np.float32)}
