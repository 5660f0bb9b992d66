"""Published runs, and what the planner says of them: `tools/plan_run.py --published` writes it into docs/planner.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.config import ModelConfig, ParallelConfig
from megatron.mpu.layout import Layout
from megatron.planning.case import Case
from megatron.planning.estimate import estimate, layer_work, step_flops
from megatron.planning.profiles import PROFILES
from megatron.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run that others have measured. seconds: of a step; assumed: what the source does not say and we have chosen.

    calibrated: whether the planner's constants were chosen with this run in sight.
    """

    name: str
    source: str
    gpu: str
    case: Case
    seconds: float
    assumed: str = ""
    calibrated: bool = False


def _gpt(layers: int, hidden: int, heads: int, sequence: int, positions: int = 0) -> ModelConfig:
    """GPT's layers are ours, but for the causal mask, of which no system of these sources makes use."""
    return ModelConfig(
        num_layers=layers, hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=4 * hidden,
        max_position_embeddings=positions or sequence, vocab_size=51200, bert_no_binary_head=True,
    )  # fmt: skip


def _case(
    model: ModelConfig,
    gpus: int,
    batch: int,
    micro: int,
    sequence: int,
    parallel: ParallelConfig,
) -> Case:
    """With the head at all positions, as in those systems."""
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    data = gpus // (tensor * pipeline)
    head_share = 1.0
    if model.bert_no_binary_head:  # GPT: at as many positions as cost the same with BERT's transform before the head
        head_share = 1.0 / (1.0 + tensor * model.hidden_size / model.vocab_size)
    return Case(
        model=model,
        parallel=parallel,
        layout=Layout(pipeline=pipeline, data=data, tensor=tensor),
        on_gpu=True,
        dtype="fp16",
        samples=micro,
        sequence=sequence,
        masked=round(micro * sequence * head_share),
        micro_batches=batch // (micro * data),
    )


def _parallel(tensor: int, pipeline: int, chunk: int | None = None, **options: Any) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline,
        num_layers_per_virtual_pipeline_stage=chunk, **options
    )  # fmt: skip


def _scaling(name: str, shape: tuple[int, int, int], sizes: tuple[int, int, int, int, int], chunk: int | None,
             micro: int, teraflops: float) -> Published:  # fmt: skip
    """A row of arXiv 2104.04473, table 1; its TFLOP/s count the recomputed forward."""
    layers, hidden, _ = shape
    tensor, pipeline, gpus, batch, sequence = sizes
    flops = (
        96.0 * batch * sequence * layers * hidden**2 * (1 + sequence / (6 * hidden) + 51200 / (16 * layers * hidden))
    )
    return Published(
        name=f"GPT {name}",
        source="arXiv 2104.04473, table 1",
        gpu="a100-80",
        case=_case(
            _gpt(*shape, sequence), gpus, batch, micro, sequence,
            _parallel(tensor, pipeline, chunk, recompute_granularity="full"),
        ),
        seconds=flops / (gpus * teraflops * 1e12),
        assumed=f"micro-batch {micro}" + (f", chunks of {chunk} layers" if chunk else ""),
    )  # fmt: skip


def _selective(name: str, shape: tuple[int, int, int], pipeline: int, batch: int, micro: int, chunk: int | None,
               seconds: float) -> Published:  # fmt: skip
    """A row of arXiv 2205.05198, table 5: tensor and sequence parallel 8, selective recomputation."""
    return Published(
        name=f"GPT {name}, sequence parallel, selective",
        source="arXiv 2205.05198, table 5",
        gpu="a100-80",
        case=_case(
            _gpt(*shape, 2048), 8 * pipeline, batch, micro, 2048,
            _parallel(8, pipeline, chunk, recompute_granularity="selective", sequence_parallel=True),
        ),
        seconds=seconds,
        calibrated=True,
    )  # fmt: skip


_BERT_340M = ModelConfig(
    num_layers=24, hidden_size=1024, num_attention_heads=16, ffn_hidden_size=4096, max_position_embeddings=512,
    vocab_size=30592,
)  # fmt: skip


def _ci(parallel: ParallelConfig, seconds: float) -> Published:
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    chunks = ", 2 chunks a stage" if parallel.num_layers_per_virtual_pipeline_stage else ""
    return Published(
        name=f"BERT 340M, tensor {tensor}, pipeline {pipeline}{chunks}",
        source="Megatron-LM's functional tests, golden values on a DGX H100 (unfused, deterministic)",
        gpu="h100",
        case=_case(_BERT_340M, 8, 128, 4, 512, parallel),
        seconds=seconds,
    )


def _v100(tensor: int, shape: tuple[int, int, int], efficiency: float) -> Published:
    """Weak scaling of arXiv 1909.08053: 39 TFLOP/s on one GPU, and the share of it that is left on several."""
    case = _case(_gpt(*shape, 1024), tensor, 8, 8, 1024, _parallel(tensor, 1, recompute_granularity="full"))
    return Published(
        name=f"GPT-2 of tensor parallelism {tensor}",
        source="arXiv 1909.08053, 5.1",
        gpu="v100-32",
        case=case,
        seconds=step_flops(case) * 4 / 3 / (tensor * efficiency * 39e12),
        assumed="the 39 TFLOP/s count the recomputed forward",
        calibrated=tensor == 1,
    )


def _erlangshen(size: str) -> ModelConfig:
    return PRESETS[f"erlangshen-megatronbert-{size}"]


def _nemo() -> Published:
    parallel = _parallel(1, 1, use_distributed_optimizer=True, recompute_granularity="selective")
    case = _case(_erlangshen("3.9b"), 8, 8 * 16 * 16, 16, 512, parallel)
    return Published(
        name="BERT 4B, 8 GPUs",
        source="NVIDIA NeMo user guide: 57,287 tokens/s",
        gpu="a100-80",
        case=case,
        seconds=case.step_tokens / 57287,
        assumed="48 x 2560, ZeRO, micro-batch 16, batch 2048, selective recomputation",
    )


RUNS: tuple[Published, ...] = (
    _scaling("1.7B", (24, 2304, 24), (1, 1, 32, 512, 2048), None, 16, 137),
    _scaling("7.5B", (36, 4096, 32), (4, 1, 128, 512, 2048), None, 16, 142),
    _scaling("18B", (40, 6144, 48), (8, 1, 256, 1024, 2048), None, 8, 135),
    _scaling("76B", (60, 10240, 80), (8, 4, 1024, 1792, 2048), 5, 2, 140),
    _scaling("145B", (80, 12288, 96), (8, 8, 1536, 2304, 2048), 5, 2, 148),
    _scaling("310B", (96, 16384, 128), (8, 16, 1920, 2160, 2048), 3, 1, 155),
    _scaling("530B", (105, 20480, 128), (8, 35, 2520, 2520, 2048), 1, 1, 163),
    _scaling("1T", (128, 25600, 160), (8, 64, 3072, 3072, 2048), 1, 1, 163),
    _selective("22B", (48, 6144, 64), 1, 4, 4, None, 1.10),
    _selective("175B", (96, 12288, 96), 8, 64, 1, 4, 13.75),
    _selective("530B", (105, 20480, 128), 35, 280, 1, 1, 37.83),
    _selective("1T", (128, 25600, 160), 64, 512, 1, None, 71.49),
    _v100(1, (40, 1536, 16), 1.0),
    _v100(2, (54, 1920, 20), 0.95),
    _v100(4, (64, 2304, 24), 0.82),
    _v100(8, (72, 3072, 32), 0.77),
    _nemo(),
    Published(
        name="Erlangshen 1.3B, 32 GPUs",
        source="its model card: 14 days; its script: 1.8 M steps of 1024 samples",
        gpu="a100-40",
        case=_case(_erlangshen("1.3b"), 32, 1024, 4, 512, _parallel(1, 1, use_distributed_optimizer=True)),
        seconds=14 * 86400 / 1.8e6,
        assumed="ZeRO over 32; no recomputation",
    ),
    Published(
        name="Erlangshen 3.9B, 64 GPUs",
        source="its documentation: about 30 days, pipeline and data parallelism",
        gpu="a100-40",
        case=_case(_erlangshen("3.9b"), 64, 1024, 4, 512, _parallel(1, 4)),
        seconds=30 * 86400 / 1.8e6,
        assumed="1.8 M steps of 1024 samples, as the 1.3B; 4 stages, micro-batch 4",
    ),
    _ci(_parallel(1, 2), 0.448),
    _ci(_parallel(1, 4, 3), 0.544),
    _ci(_parallel(2, 2), 0.800),
    _ci(_parallel(4, 1), 1.747),
)

# Milliseconds of a layer of 22B, micro-batch 4, 8 GPUs: forward, backward (arXiv 2205.05198, table 4).
LAYER_TIMES: tuple[tuple[str, dict[str, Any], float, float], ...] = (
    ("no recomputation", {}, 7.7, 11.9),
    ("sequence parallel", {"sequence_parallel": True}, 7.2, 11.8),
    ("selective recomputation", {"recompute_granularity": "selective"}, 7.7, 13.2),
    ("both", {"sequence_parallel": True, "recompute_granularity": "selective"}, 7.2, 13.1),
)


def comparison() -> list[str]:
    """Published against estimated, as a table in Markdown."""
    lines = [
        "| run | source | GPUs | published s/step | estimated s/step | ratio | chosen, not in the source |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in RUNS:
        seconds = estimate(run.case, PROFILES[run.gpu], overlapped=False).seconds
        mark = " *" if run.calibrated else ""
        lines.append(
            f"| {run.name}{mark} | {run.source} | {run.case.layout.world_size} {run.gpu} | {run.seconds:.3g} | "
            f"{seconds:.3g} | {seconds / run.seconds:.2f} | {run.assumed} |"
        )
    return lines


def layer_comparison() -> list[str]:
    """The same for the times of one layer."""
    lines = ["| a layer of 22B, ms | published forward, backward | estimated | ratios |", "|---|---|---|---|"]
    for name, options, forward, backward in LAYER_TIMES:
        case = _case(_gpt(48, 6144, 64, 2048), 8, 4, 4, 2048, _parallel(8, 1, **options))
        work = layer_work(case, PROFILES["a100-80"])
        ours = 1e3 * work.forward, 1e3 * work.backward
        lines.append(
            f"| {name} | {forward}, {backward} | {ours[0]:.1f}, {ours[1]:.1f} | {ours[0] / forward:.2f}, "
            f"{ours[1] / backward:.2f} |"
        )
    return lines
