"""How many processes train together, which of them this one is, and what they must agree on.

One process is a world of one: everything here is then plain arithmetic. With several, the values below go through
``torch.distributed``; every process calls the same functions in the same order.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hepta.config import HeptaError


@dataclass(frozen=True)
class World:
    """Processes of one run.

    Attributes:
        rank: number of this process, from 0.
        size: processes in all.
        tensor: neighbours that split each layer's matrices between them and read the same sequences.
    """

    rank: int = 0
    size: int = 1
    tensor: int = 1

    @property
    def main(self) -> bool:
        """Whether this process speaks, logs and writes for all."""
        return self.rank == 0

    @property
    def readers(self) -> int:
        """Parts that the sequences of a step are cut into."""
        return self.size // self.tensor

    @property
    def reader(self) -> int:
        """Which of those parts this process reads."""
        return self.rank // self.tensor

    def part(self, step: int, per_step: int) -> tuple[int, int]:
        """The sequences [first, end) of a step that this process reads: the cut comes last, the order is the run's."""
        each = per_step // self.readers
        first = step * per_step + self.reader * each
        return first, first + each

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the parts, in double precision."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [value / self.tensor for value in tensor.tolist()]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is raised in any process."""
        if self.size == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [bool(flag) for flag in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """A JSON value from each part, in order of parts."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor(len(data)))
        longest = max(int(length) for length in lengths)
        contents = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(contents, torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8))
        return [json.loads(content.numpy().tobytes()) for content in contents[:: self.tensor]]

    def lead(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives in the first process, as JSON gives it back; the others wait for it.

        Raises:
            HeptaError: the first process's own; the others end without a word, as one message is enough.
        """
        if self.size == 1:
            return work()
        if not self.main:
            told = json.loads(self._broadcast(b""))
            if "code" in told:
                raise SystemExit(told["code"])
            return told["value"]
        try:
            told = {"value": work()}
        except HeptaError as error:
            self._broadcast(json.dumps({"code": error.exit_code}).encode())
            raise
        return json.loads(self._broadcast(json.dumps(told).encode()))["value"]

    def _broadcast(self, data: bytes) -> bytes:
        length = torch.tensor(len(data))
        dist.broadcast(length, 0)
        content = torch.frombuffer(bytearray(data or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return content.numpy().tobytes()

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()
_tensor = 1  # processes per part, of the group that ``join`` made


def join(backend: str, tensor: int = 1, **how: Any) -> World:
    """Make this process one of a group.

    Args:
        backend: of ``torch.distributed``.
        tensor: see ``World``; it divides the number of processes.
        how: for ``init_process_group``: none where torchrun's environment says it.

    Raises:
        HeptaError: ``tensor`` does not divide the processes.
    """
    global _tensor
    dist.init_process_group(backend, **how)
    if dist.get_world_size() % tensor:
        size = dist.get_world_size()
        dist.destroy_process_group()
        raise HeptaError(f"tensor_parallel {tensor} does not divide {size} processes; choose a divisor")
    _tensor = tensor
    return world()


def leave() -> None:
    """Be alone again."""
    global _tensor
    _tensor = 1
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> World:
    """The world this process is in.

    Raises:
        HeptaError: the environment speaks of several processes, and they were never joined: each would train alone
            and overwrite the others' work (trap R14).
    """
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), _tensor)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        found = f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but no process group was made"
        raise HeptaError(f"{found}; several processes train together in hepta pretrain and hepta sft only")
    return ALONE
