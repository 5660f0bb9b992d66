"""The memory of ranks, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.config import PretrainConfig
from megatron.mpu.context import ParallelContext
from megatron.planning.activations import activation_bytes, workspace_bytes
from megatron.planning.case import Case, case_of
from megatron.planning.states import StateBytes, state_bytes

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes of every rank of a pipeline stage. states: exact; activations: kept for backwards; workspace: rough."""

    stage: int
    states: StateBytes
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it, without what the device's libraries take."""
        return self.states.total + self.activations + self.workspace


def stage_memory(case: Case, stage: int) -> StageMemory:
    """The memory of the ranks of a stage; they are alike."""
    return StageMemory(
        stage=stage,
        states=state_bytes(case, stage),
        activations=activation_bytes(case, stage),
        workspace=workspace_bytes(case, stage),
    )


def unlike_stages(case: Case) -> list[int]:
    """The stages of which one needs most memory: the ends, and the first of those between with the most layers.

    Of stages with equal parts an earlier one holds at least as many activations as a later one.
    """
    stages = case.layout.pipeline
    between = range(1, stages - 1)
    layers = {stage: sum(part.stop - part.first for part in case.parts(stage)) for stage in between}
    widest = [next(stage for stage in between if layers[stage] == max(layers.values()))] if layers else []
    return sorted({0, stages - 1, *widest})


def largest_memory(case: Case) -> StageMemory:
    """The memory of the stage that needs most."""
    return max((stage_memory(case, stage) for stage in unlike_stages(case)), key=lambda memory: memory.total)


def gib(size: float) -> str:
    """Bytes in the unit that says most."""
    for unit, bytes_of_unit in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_of_unit / 10:
            return f"{size / bytes_of_unit:.2f} {unit}"
    return f"{size:.0f} bytes"


def memory_table(memory: StageMemory) -> list[str]:
    """A rank's memory as text."""
    states = memory.states
    rows = [
        ("weights", states.weights, "exact"),
        ("gradients", states.gradients, "exact, fp32"),
        ("master weights", states.masters, "exact, fp32"),
        ("Adam's moments", states.moments, "exact, fp32"),
        ("activations", memory.activations, "estimate: kept for the backward at the fullest moment"),
        ("workspace", memory.workspace, "rough: tensors of one forward or backward"),
    ]
    lines = [f"{name:<15} {size:>18,} bytes {gib(size):>12}  {note}" for name, size, note in rows]
    return [*lines, f"{'total':<15} {memory.total:>18,} bytes {gib(memory.total):>12}  without the device's libraries"]


def memory_lines(config: PretrainConfig, context: ParallelContext) -> list[str]:
    """What this rank of a resolved configuration will need, for the report at a run's start."""
    rank, case = context.rank, case_of(config, context.world.size, on_gpu=context.device.type == "cuda")
    memory = stage_memory(case, case.layout.coordinates(rank)[0])
    states = memory.states
    return [
        f"memory of rank {rank}: {gib(states.weights)} weights, {gib(states.gradients)} gradients, "
        f"{gib(states.optimizer)} optimizer (exact); about {gib(memory.activations)} activations and "
        f"{gib(memory.workspace)} workspace; together about {gib(memory.total)}"
    ]
