"""Packing: which requests share a batch, by their order and lengths alone, so that the same run gives the same bits.

How tokens are grouped changes the last digits of their scores, since the kernels sum in another order. So requests are
packed once, in the order of the run; a pack is evaluated from the same state of the context whatever came before it,
and whoever resumes or shares a run begins at the start of a pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

# Tokens that are packed, and evaluated, together: on the processor more win nothing, a GPU is not busy with so few.
PACK, GPU_PACK = 512, 2048


def n_outputs(pack: int) -> int:
    """Rows of logits in one batch. They bound the memory: 4 bytes × n_vocab each, twice (the graph's and the copy)."""
    return pack // 8


def n_sequences(pack: int) -> int:
    """Sequences beside the head's. llama.cpp keeps room for a row of logits for each, and has no more than 256."""
    return n_outputs(pack) - 1


# Sequences of a model with a state, as hybrids of attention and linear attention have: each has a state of its own, of
# tens of megabytes.
STATES = 7


def n_cells(pack: int) -> int:
    """Cells of one pack, where answers may be long, as thoughts are: those of 256 tokens for all sequences fit."""
    return n_sequences(pack) * 256 + 3 * pack


@dataclass(frozen=True)
class PackedRequest:
    """Tokens of one question after the head that all questions share: `stem`, then each of `branches` on its own.

    No two branches are equal, none is empty. The last token of a branch is only scored, never evaluated.
    """

    stem: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...] = ()
    reserve: int = 0  # cells for what is generated after the stem

    @property
    def n_evaluated(self) -> int:
        return len(self.stem) + sum(len(b) - 1 for b in self.branches)

    @property
    def n_cells(self) -> int:
        return self.n_evaluated + self.reserve

    @property
    def n_longest(self) -> int:
        """Positions that the longest way through the request needs."""
        return len(self.stem) + max(self.reserve, *(len(b) - 1 for b in self.branches), 0)

    @property
    def n_sequences(self) -> int:
        """One for each branch that is evaluated; the stem needs one in any case, a request without tokens none."""
        return max(len(self.stem) > 0, sum(len(b) > 1 for b in self.branches))


@dataclass(frozen=True)
class PackedRow:
    """One token of a batch: its position after the head, the sequences it belongs to, and what is read after it.

    `reads` are (branch, which of its tokens): the logits here score that token. `last` marks the end of a stem.
    """

    token: int
    position: int
    sequences: tuple[int, ...]
    request: int
    reads: tuple[tuple[int, int], ...] = ()
    last: bool = False

    @property
    def is_output(self) -> bool:
        return self.last or bool(self.reads)


def packs(requests: Sequence[PackedRequest], n_tokens: int, n_sequences: int, n_cells: int = 1 << 40) -> list[range]:
    """Runs of consecutive requests that fit all limits together; a larger one has a pack alone."""
    found: list[range] = []
    limits = n_tokens, n_sequences, n_cells
    start, used = 0, tuple(0 for _ in limits)
    for i, request in enumerate(requests):
        needed: tuple[int, ...] = request.n_evaluated, request.n_sequences, request.n_cells
        together = tuple(a + b for a, b in zip(used, needed, strict=True))
        if i > start and any(n > limit for n, limit in zip(together, limits, strict=True)):
            found.append(range(start, i))
            start, together = i, needed
        used = together
    if start < len(requests):
        found.append(range(start, len(requests)))
    return found


def rows(requests: Sequence[PackedRequest]) -> Iterator[PackedRow]:
    """The tokens of a pack in the order of evaluation: each stem once, for all branches, then each branch once."""
    for i, (request, sequences) in enumerate(zip(requests, owned(requests), strict=True)):
        heads = tuple((b, 0) for b in range(len(request.branches)))
        for at, token in enumerate(request.stem):
            end = at == len(request.stem) - 1
            yield PackedRow(token, at, tuple(sequences), i, heads if end else (), end)
        evaluated = [b for b, branch in enumerate(request.branches) if len(branch) > 1]
        for sequence, b in zip(sequences, evaluated, strict=False):  # a stem without long branches has a sequence too
            for at, token in enumerate(request.branches[b][:-1]):
                yield PackedRow(token, len(request.stem) + at, (sequence,), i, ((b, at + 1),))


def stems(requests: Sequence[PackedRequest]) -> Iterator[PackedRow]:
    """The tokens of all stems, each in its request's first sequence alone: a state can't be shared by a mark."""
    for row in rows(requests):
        if row.position < len(requests[row.request].stem):
            yield replace(row, sequences=row.sequences[:1])


def branches(requests: Sequence[PackedRequest]) -> Iterator[PackedRow]:
    """The tokens of all branches, whose sequences hold their stem."""
    return (row for row in rows(requests) if row.position >= len(requests[row.request].stem))


def owned(requests: Sequence[PackedRequest]) -> Iterator[range]:
    """The sequences of every request of a pack; sequence 0 holds the head."""
    first = 1
    for request in requests:
        yield range(first, first + request.n_sequences)
        first += request.n_sequences


def batches(pack: Sequence[PackedRow], n_tokens: int, n_outputs: int) -> Iterator[Sequence[PackedRow]]:
    """The rows of a pack, cut where a batch would have more tokens, or more rows whose logits are kept."""
    start = outputs = 0
    for i, row in enumerate(pack):
        if i - start == n_tokens or (row.is_output and outputs == n_outputs):
            yield pack[start:i]
            start, outputs = i, 0
        outputs += row.is_output
    if start < len(pack):
        yield pack[start:]
