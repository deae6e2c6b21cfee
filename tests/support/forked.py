"""Processes that need not import anything: forked from a server that did so once, and has computed nothing since.

torch's and timm's imports take longer than most of what tests do in processes of their own. A process that has computed
has threads, with which a fork may hang; the server has none. What torchrun itself, an exit of the interpreter or an
import does is not seen here: tests of those start an interpreter.
"""

import os
import runpy
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import seeds

# what runs of several processes import, some of it late; the server goes on without what is not installed
_PRELOADED = [
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "numba",
    "lightly",
    "timm_mvhybrid.cli",
    "timm_mvhybrid.pretrain.train",
    "timm_mvhybrid.finetune.runs",
]


def spawn(work, args=(), nprocs=2, seconds=240):
    """Calls `work(rank, *args)` in processes of their own; raises, as torch's function of this name, if one fails."""
    with patch.dict(os.environ, {"OMP_NUM_THREADS": str(threads_of(nprocs))}):
        # the server keeps the environment that it found; each process takes today's
        forkserver.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
        given = (dict(os.environ), seeds.offset(), work, args)
        processes = mp.start_processes(_work, given, nprocs=nprocs, join=False, start_method="forkserver")
    end = time.monotonic() + seconds
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < end, f"{processes.pids()} have not ended after {seconds} s"
    finally:
        for process in processes.processes:
            process.kill()


def threads_of(ranks):
    """Threads of each of several processes: as many as this one's for a single one, which shall compute to the bit what this
    one does, for the number of threads decides in which order sums are taken; else one."""
    return torch.get_num_threads() if ranks == 1 else 1


def _work(rank, environment, offset, work, args):
    os.environ.clear()
    os.environ.update(environment)
    # what the variable says was read when torch was imported
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    # the server imported this file in its own environment
    seeds.install()
    seeds.set_offset(offset)
    work(rank, *args)


def run_module(module, arguments, ranks=1, folder=None):
    """Runs a module, or a file of this path, as its main program; several processes find each other as torchrun's do.

    Args:
        module: Name or path.
        arguments: Of its command line.
        ranks: Number of processes.
        folder: Where it runs; None for here.

    Returns:
        Exit code, of the first that failed if one did, and what all of them printed and said.
    """
    environment = {}
    module = str(module)
    if ranks > 1:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
    code = 0
    with tempfile.TemporaryDirectory() as texts:
        given = (module, [str(value) for value in arguments], environment, texts, str(folder or Path.cwd()))
        try:
            spawn(_run_module, given, ranks)
        except mp.ProcessExitedException as end:
            code = end.exit_code
        out, err = ("".join(path.read_text() for path in sorted(Path(texts).glob(f"{n}.*"))) for n in (1, 2))
    return code, out, err


def _run_module(rank, module, arguments, environment, texts, folder):
    os.chdir(folder)
    if environment:
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    for number in (1, 2):
        os.dup2(os.open(f"{texts}/{number}.{rank}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [module, *arguments]
    try:
        if Path(module).is_file():
            sys.path.insert(0, str(Path(module).parent))
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
