"""Several processes of one run: made here, joined into one group, watched, and ended together.

``hepta pretrain --nproc 2`` starts two on this machine, which meet over a file and talk over the loopback device;
``torchrun … -m hepta pretrain`` starts them itself, on as many machines as it is told. What they do is the same.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing.spawn import start_processes

from hepta.config import HeptaError, Interrupted, MachineError
from hepta.console import say
from hepta.training.result import TrainingResult
from hepta.training.stop import handled
from hepta.training.world import join, leave, world

GRACE = 5.0  # seconds that the others have to end by themselves once one has failed
AT_ONCE = "stopped at once; the same command goes on from the last saved state"
ERRORS = {kind.exit_code: kind for kind in (HeptaError, MachineError, Interrupted)}
BY_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
Verb = Callable[[Any], TrainingResult]


def in_processes(verb: Verb) -> Verb:
    """Let a verb's function run in as many processes as its config, or torchrun, says; one is the function itself.

    Raises:
        HeptaError: ``nproc`` is not torchrun's number; else what the verb raises, in whichever process.
        MachineError: a process was killed.
    """

    @functools.wraps(verb)
    def run(config: Any) -> TrainingResult:
        if dist.is_initialized():
            return verb(config)
        if set(os.environ) >= BY_TORCHRUN and int(os.environ["WORLD_SIZE"]) > 1:
            return _under_torchrun(verb, config)
        if config.nproc > 1:
            return TrainingResult(
                **run_processes(run, config, config.nproc, config.tensor_parallel, str(config.output))
            )
        if config.tensor_parallel > 1:
            raise HeptaError(
                f"tensor_parallel {config.tensor_parallel}: splits over as many processes; give --nproc too"
            )
        return verb(config)

    return run


def _backend(config: Any) -> str:
    device = getattr(config, "device", "cpu")
    return "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"


def _under_torchrun(verb: Verb, config: Any) -> TrainingResult:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if config.nproc not in (1, size):
        raise HeptaError(f"nproc {config.nproc}: torchrun has started {size} processes; leave nproc out")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _be_silent(rank)
    join(_backend(config), config.tensor_parallel)
    try:
        result = verb(config)
        world().wait()
    except Exception as error:
        if rank and not isinstance(error, Interrupted):
            print(f"process {rank} of {size}: {type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
        raise
    finally:
        leave()
    return result


def _be_silent(rank: int) -> None:
    """The first process speaks for all."""
    if rank:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends


@dataclass(frozen=True)
class Meeting:
    """What a new process needs to know to be one of a group."""

    folder: str  # where the processes meet and leave their reports
    size: int
    tensor: int
    threads: int
    environment: dict[str, str]


def run_processes(work: Callable[[Any], Any], config: Any, size: int, tensor: int = 1, name: str = "") -> Any:
    """Run ``work(config)`` in ``size`` processes of this machine, joined into one group.

    A process that fails ends the others within seconds. Signals to this process are passed on, so all stop after the
    same step.

    Args:
        work: importable by its name; gives a dataclass or JSON.
        config: its argument.
        size: processes.
        tensor: see ``World``.
        name: of the run, for messages.

    Returns:
        what the first process's ``work`` gave, as JSON gives it back.
    """
    method = "forkserver" if sys.platform == "linux" else "spawn"
    if method == "forkserver":  # torch is imported once, and its pages are shared
        multiprocessing.set_forkserver_preload(["hepta.training.pretrain", "torch.distributed.fsdp"])
    threads = getattr(config, "threads", None) or max(1, torch.get_num_threads() // size)
    with tempfile.TemporaryDirectory(prefix="hepta-") as folder:
        meeting = Meeting(folder, size, tensor, threads, dict(os.environ))
        came: list[int] = []
        with handled(lambda number, _: came.append(number)):  # passed on by ``_watch``, which knows who is there
            context: Any = start_processes(_be_one_of, (work, config, meeting), size, join=False, start_method=method)
            killed = _watch(context.processes, came)
        return _outcome(context.processes, killed, Path(folder), name, bool(came))


def _be_one_of(rank: int, work: Callable[[Any], Any], config: Any, meeting: Meeting) -> None:
    """A process's whole life; what it has to say stands in its report."""
    os.setsid()  # Ctrl-C reaches the process that started us, which passes it on

    def end(code: int, told: dict[str, Any]) -> None:
        report = json.dumps({"code": code, "at": time.time(), **told}, default=str)
        (Path(meeting.folder) / f"{rank}.json").write_text(report)
        os._exit(code)  # nothing is left to do, and a broken group may wait for the others when it is taken down

    with handled(lambda *_: end(Interrupted.exit_code, {"error": AT_ONCE})):  # wherever no step is under way
        code, told = _work_as(rank, work, config, meeting)
        sys.stderr.flush()
        end(code, told)


def _work_as(rank: int, work: Callable[[Any], Any], config: Any, meeting: Meeting) -> tuple[int, dict[str, Any]]:
    """Join the group and work; gives an exit code and what to report."""
    os.environ.update(meeting.environment)
    os.environ.update({"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK, "LOCAL_RANK": str(rank)})
    torch.set_num_threads(meeting.threads)
    _be_silent(rank)
    try:
        if _backend(config) != "gloo":
            torch.cuda.set_device(rank)
        store = FileStore(str(Path(meeting.folder) / "meeting"), meeting.size)
        join(_backend(config), meeting.tensor, store=store, rank=rank, world_size=meeting.size)
        result = work(config)
        world().wait()
        leave()
        return 0, {"result": result if isinstance(result, dict) else asdict(result)}
    except HeptaError as error:
        return error.exit_code, {"error": str(error)}
    except SystemExit as stop:  # of a process that follows: the first one has told why
        return int(stop.code or 0), {}
    except KeyboardInterrupt:
        return Interrupted.exit_code, {"error": AT_ONCE}
    except BaseException:
        return 1, {"trace": traceback.format_exc()}


def _watch(processes: Sequence[Any], came: Sequence[int]) -> set[int]:
    """Wait for all to end and pass on the signals that came, to the first process first, as it speaks for all.

    Once one has failed or stopped, or the second signal has come, the others have ``GRACE`` seconds.

    Returns:
        the ranks ended here.
    """
    passed, until = 0, None
    while alive := [process for process in processes if process.is_alive()]:
        for number in came[passed:]:
            passed += 1
            for process in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        wait([process.sentinel for process in alive], 0.2)
        failed = any(process.exitcode not in (None, 0) for process in processes)
        if until is None and (failed or passed > 1):
            until = time.monotonic() + GRACE
        if until is not None and time.monotonic() > until:
            late = {rank for rank, process in enumerate(processes) if process.is_alive()}
            for rank in late:
                processes[rank].kill()
            for process in processes:
                process.join()
            return late
    return set()


def _outcome(processes: Sequence[Any], killed: set[int], folder: Path, name: str, asked: bool) -> Any:
    """The first process's result, or the one error behind all."""
    size, hint = len(processes), "the same command goes on from the last checkpoint"
    reports = {}
    for rank in range(size):
        if (folder / f"{rank}.json").is_file():
            reports[rank] = json.loads((folder / f"{rank}.json").read_text())
    told = [report for report in reports.values() if "error" in report]
    if asked and not told and 0 not in reports:  # ended before they could say anything
        raise Interrupted(f"{name}: stopped at once; {hint}")
    for rank, process in enumerate(processes):
        if rank in reports or rank in killed or asked:
            continue
        ended = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"code {process.exitcode}"
        memory = ", perhaps for memory" if process.exitcode == -signal.SIGKILL else ""
        raise MachineError(f"{name}: process {rank} of {size} was ended by {ended}{memory}; all are stopped, {hint}")
    if told:
        raise ERRORS[told[0]["code"]](told[0]["error"])
    traces = sorted((report["at"], rank) for rank, report in reports.items() if "trace" in report)
    if traces:  # the others broke down because of the first
        rank = traces[0][1]
        say(reports[rank]["trace"].rstrip())
        raise MachineError(f"{name}: process {rank} of {size} broke down, as above; {hint}")
    return reports[0]["result"]
