"""Checkpoints of a run as it goes: written while it waits, or in the background from a copy (`--async-save`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from megatron.checkpoint.direct import Written
from megatron.checkpoint.store import (
    CONFIG,
    TRAIN_STATE,
    Pruning,
    begin_save,
    finish_save,
    json_bytes,
    write_own,
)
from megatron.config import PretrainConfig, to_dict
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import Piece
from megatron.optimizer.adamw import Optimizer
from megatron.training.state import Progress

_ALIGNMENT = 16  # bytes


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    """A checkpoint that a thread writes. blocked: seconds for which training waited for the copy."""

    temporary: Path
    files: Mapping[str, bytes]
    pruning: Pruning
    writing: Future[tuple[dict[str, Written], str]]
    started: float
    blocked: float


class Saver:
    """Writes the checkpoints of a run into --save; `save` and `finish` are called by all ranks together."""

    def __init__(
        self, config: PretrainConfig, data: Mapping[str, str], files: Mapping[str, bytes], context: ParallelContext
    ) -> None:
        """data: names and hashes of what the corpora hold. files: what goes into each checkpoint besides."""
        self._config, self._data, self._context = config, dict(data), context
        self._files = {CONFIG: json_bytes(to_dict(config)), **files}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._room = torch.empty(0, dtype=torch.uint8)  # for the copy; fresh memory would be slower each time
        self._under_way: _UnderWay | None = None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is begun and not published; the same on all ranks."""
        return self._under_way is not None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing its part."""
        return self._under_way is not None and not self._under_way.writing.done()

    def save(self, progress: Progress, optimizer: Optimizer, *, in_background: bool) -> str:
        """Save the run, when nothing is under way; what to say of it.

        Raises `UserError` on all ranks if the folder cannot be made, and if not in the background for all else.
        """
        assert not self.writing
        started = time.perf_counter()
        options = self._config.checkpoint
        assert options.save is not None
        temporary = begin_save(Path(options.save), progress.step, self._context)
        model, moments = optimizer.weights(once=True), [] if options.no_save_optim else optimizer.moments(once=True)
        if in_background:
            copied = self._copied([*model, *moments])
            model, moments = copied[: len(model)], copied[len(model) :]
        state = {**asdict(progress), "optimizer": optimizer.scalars(), "data": self._data}
        # After a step that was not finite the state may be on its way out: the older ones stay.
        pruning = Pruning() if progress.skipped_in_a_row else Pruning(last=options.keep_last, every=options.keep_every)
        self._under_way = _UnderWay(
            temporary=temporary,
            files={**self._files, TRAIN_STATE: json_bytes(state)},
            pruning=pruning,
            writing=self._thread.submit(write_own, temporary, model, moments, self._context.rank),
            started=started,
            blocked=time.perf_counter() - started,
        )
        if in_background:
            return f"saving step {progress.step} in the background, after {self._under_way.blocked:.1f} s"
        return self.finish()

    def finish(self) -> str:
        """Publish the checkpoint under way, when all ranks have written it; what to say of it.

        Raises `UserError` on all ranks if any could not write.
        """
        under_way, self._under_way = self._under_way, None
        assert under_way is not None
        written, failure = under_way.writing.result()
        path = finish_save(
            under_way.temporary,
            written,
            failure,
            files=under_way.files,
            context=self._context,
            pruning=under_way.pruning,
        )
        return f"saved {path} in {time.perf_counter() - under_way.started:.1f} s"

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _copied(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces in memory of the host that stays as it is while training goes on."""
        sizes = [piece.tensor.numel() * piece.tensor.element_size() for piece in pieces]
        places = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        if self._room.numel() < sum(places):
            pinned = self._context.device.type == "cuda"
            self._room = torch.empty(sum(places), dtype=torch.uint8, pin_memory=pinned)
        copies, start = [], 0
        for piece, size, place in zip(pieces, sizes, places, strict=True):
            room = self._room[start : start + size].view(piece.tensor.dtype).view(piece.tensor.shape)
            copies.append(replace(piece, tensor=room.copy_(piece.tensor, non_blocking=True)))
            start += place
        if self._context.device.type == "cuda":
            torch.cuda.synchronize()
        return copies
