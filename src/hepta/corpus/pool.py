"""Run units in this process or in spawned ones; the result is the same."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from hepta.config import MachineError
from hepta.corpus.config import CorpusConfig
from hepta.corpus.inputs import Piece
from hepta.corpus.unit import UnitResult, run_unit

POOL_PAYS_FROM = 16 << 20  # bytes of input; starting a process costs about a second


def _begin_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it is gone (even by kill −9)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_units(
    todo: list[tuple[str, list[Piece]]], config: CorpusConfig, folder: Path
) -> Iterator[tuple[str, UnitResult]]:
    """Yield (unit name, result) as units finish, in any order.

    Raises:
        MachineError: a worker process died (usually memory), or the disk is full.
    """
    workers = min(config.workers or _cores(), len(todo))
    size = sum(piece.size for _, unit in todo for piece in unit)
    off_main = threading.current_thread() is not threading.main_thread()  # no time limit for HTML there
    if (workers < 2 or size < POOL_PAYS_FROM) and not off_main:
        for name, unit in todo:
            yield name, run_unit(unit, config, folder, name)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (os.getpid(),)
    pool = ProcessPoolExecutor(max(workers, 1), mp_context=context, initializer=_begin_worker, initargs=arguments)
    try:
        futures = {pool.submit(run_unit, unit, config, folder, name): name for name, unit in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise MachineError("a worker process died, most likely for lack of memory; repeat with workers=1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
