import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import numpy as np
from megatron.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megatron.data.batches import Batch
from megatron.mpu.context import ParallelContext
from megatron.native import _C
from megatron.training.model import build, new_optimizer
from megatron.training.step import train_step

if sys.argv[1] == "kept":
    assert _C.keep_memory()
model = ModelConfig(
    num_layers=2, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=4, vocab_size=30000,
    max_position_embeddings=128,
)
context, precision = ParallelContext.single(), PrecisionConfig()
run = build(model, ParallelConfig(), precision, 1, context)
optimizer = new_optimizer(run.chunks, OptimizerConfig(lr=1e-4), precision, ParallelConfig(), context)
tokens = np.arange(8 * 128).reshape(8, 128)
batch = Batch(
    tokens=tokens, token_types=tokens * 0, lengths=np.full(8, 128), masked_positions=np.arange(5, 1024, 2),
    masked_labels=np.arange(5, 1024, 2), sop_labels=np.zeros(8, np.int64), samples=np.arange(8),
)
for _ in range(4):
    train_step(run, optimizer, [batch], 1e-4, seed=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    train_step(run, optimizer, [batch], 1e-4, seed=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


def page_faults(how: str) -> int:
    """Minor page faults of a warm training step."""
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the GNU C library")
def test_a_warm_step_takes_no_new_pages() -> None:
    assert page_faults("kept") < 500 < 4 * 500 < page_faults("given back")
