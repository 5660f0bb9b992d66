"""The forward and backward of micro-batches as a CUDA graph: one start by the host instead of one a kernel.

A graph is a record of kernels with the addresses that they read and write. So a micro-batch is copied to where the
recorded one lay, and all have one shape: masked tokens are filled up, with labels that do not count, to as many as a
micro-batch can have. The optimizer's step stays outside, for it depends on numbers whether there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from megatron.config import PretrainConfig
from megatron.data.batches import Batch
from megatron.model import UNCOUNTED
from megatron.mpu.random import dropout_keys
from megatron.training.model import Pretraining

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function starts on the device, without running it; gives what starts that again."""

_WARM = 3  # micro-batches before the recorded one: libraries choose their algorithms and take their memory


def use_own_stream(device: torch.device) -> None:
    """Work on a new stream from here on, as nothing can be recorded on the default one. Before any parameter is made:
    autograd adds up gradients on the stream on which it has first met a parameter."""
    torch.cuda.set_stream(torch.cuda.Stream(device))


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """`Capture` by CUDA, on the current stream."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on with what a recording thread must not do.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        work()
    return graph.replay


class MicroBatchGraph:
    """A model's forward and backward in one process, for micro-batches of one shape. The first few are computed
    without a graph; gradients are added to the parameters' memory."""

    def __init__(
        self, run: Pretraining, *, samples: int, sequence: int, masked: int, seed: int, capture: Capture = capture
    ) -> None:
        """samples, sequence: shape of a micro-batch; masked: its most masked tokens; seed: of dropout."""
        self.run, self.seed, self._capture = run, seed, capture
        self._seen = 0
        self._replay: Callable[[], None] | None = None
        device = run.pipeline.context.device
        shapes = {
            "tokens": (samples, sequence),
            "token_types": (samples, sequence),
            "lengths": (samples,),
            "masked_positions": (masked,),
            "masked_labels": (masked,),
            "sop_labels": (samples,),
            "samples": (samples,),
            "factors": (2,),
        }
        sizes = [math.prod(shape) for shape in shapes.values()]
        # Side by side, so that all are copied at once.
        self._memory = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        parts = zip(shapes.items(), self._memory.split(sizes), strict=True)
        self._inputs = {name: part.view(shape) for (name, shape), part in parts}
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        """As `LossSums.stacked`, of the micro-batches since it was last zeroed."""

    def add(self, batch: Batch, *, mlm: float, sop: float) -> None:
        """Forward and backward of a micro-batch. mlm, sop: factors of the sums of its losses."""
        factors = np.array([mlm, sop]).view(np.int64)
        arrays = {**vars(batch), "factors": factors}
        filled = [_filled(name, arrays[name], buffer.numel()) for name, buffer in self._inputs.items()]
        source = torch.from_numpy(np.concatenate(filled))
        self._memory.copy_(source.pin_memory() if self._memory.is_cuda else source, non_blocking=True)
        if self._seen == _WARM:
            self._replay = self._capture(self.work)
        self._seen += 1
        if self._replay is None:
            self.work()
        else:
            self._replay()

    def work(self) -> None:
        """What is recorded."""
        run, inputs = self.run, dict(self._inputs)
        context, config = run.pipeline.context, run.config
        samples, factors = inputs.pop("samples"), inputs.pop("factors").view(torch.float64).float()
        sequence, heads = inputs["tokens"].shape[1], config.num_attention_heads
        keys = dropout_keys(self.seed, samples, sequence=sequence, heads=heads, context=context)
        losses = run.chunks[0](**inputs, keys=keys)
        mlm, sop = factors.unbind()
        (losses.mlm * mlm + losses.sop * sop).backward()
        self.sums.add_(losses.stacked())


def new_graph(run: Pretraining, config: PretrainConfig) -> MicroBatchGraph:
    """The graph of a run's micro-batches."""
    data, train = config.data, config.training
    return MicroBatchGraph(
        run,
        samples=train.micro_batch_size,
        sequence=data.seq_length,
        masked=train.micro_batch_size * (math.ceil(data.largest_mask_prob * data.seq_length) + 1),
        seed=train.seed,
    )


def _filled(name: str, array: np.ndarray, size: int) -> np.ndarray:
    """An array as it is copied, in one dimension; masked tokens filled up to `size`."""
    array = array.reshape(-1)
    if name.startswith("masked"):
        array = np.pad(array, (0, size - len(array)), constant_values=UNCOUNTED if name == "masked_labels" else 0)
    assert len(array) == size, f"{name}: {len(array)} numbers, recorded with {size}"
    return array
