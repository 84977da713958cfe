"""Ranks forked from a process that has imported everything already, one set for each line that it reads; it does what torchrun does.

A line is JSON: ``count``, ``arguments`` of the command line, ``fault`` as in :mod:`support.faulty_rank`. The answer is one line of JSON:
``codes`` by rank, negative for a signal, and ``said``, the lines on all standard errors. As with torchrun the store that ranks meet at is in
neither of them, and as soon as one rank fails the others get SIGTERM. ``overdue`` says that one had to be killed 30 s later.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

STORE = """
import sys
from torch.distributed import TCPStore
store = TCPStore("localhost", 0, None, True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""

#: Seconds that torchrun gives a rank between SIGTERM and SIGKILL.
GRACE = 30.0


def run_rank(rank, job, port, attempt, output):
    """In the child: the command line of one rank; never returns."""
    from graftkit.__main__ import main
    from support import faulty_rank

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["count"]), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(attempt),
    }  # fmt: skip
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(output, 2)
    sys.argv = ["graftkit", *job["arguments"]]
    code = 70
    try:
        if job.get("fault"):
            faulty_rank.meet(*job["fault"].split())
        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def run_job(job, port, attempt):
    with tempfile.TemporaryFile() as output:
        ranks = {}
        for rank in range(job["count"]):
            child = os.fork()
            if child == 0:
                run_rank(rank, job, port, attempt, output.fileno())
            ranks[child] = rank
        codes, until, overdue = {}, None, False
        while len(codes) < len(ranks):
            child, status = os.waitpid(-1, os.WNOHANG)
            left = [process for process, rank in ranks.items() if rank not in codes and process != child]
            if child:
                codes[ranks[child]] = os.waitstatus_to_exitcode(status)
                if codes[ranks[child]] and until is None:
                    until = time.monotonic() + GRACE
                    for process in left:
                        os.kill(process, signal.SIGTERM)
            elif until is not None and time.monotonic() > until:
                overdue = True
                for process in left:
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        output.seek(0)
        said = output.read().decode().splitlines()
    return {"codes": [codes[rank] for rank in range(job["count"])], "said": said, "overdue": overdue}


def serve():
    import torch.distributed
    import transformers.conversion_mapping
    from transformers import LlamaForCausalLM

    import graftkit.report.page
    import graftkit.report.terminal
    from graftkit import commands
    from graftkit.ranks import group, helper, leader, member

    loaded = [
        torch.distributed,
        transformers.conversion_mapping,
        LlamaForCausalLM,
        graftkit.report,
        commands,
        group,
        helper,
        leader,
        member,
    ]
    assert all(loaded)
    with subprocess.Popen(
        [sys.executable, "-c", STORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as store:
        port = int(store.stdout.readline())
        for attempt, line in enumerate(sys.stdin):
            sys.stdout.write(json.dumps(run_job(json.loads(line), port, attempt)) + "\n")
            sys.stdout.flush()
        store.stdin.close()


if __name__ == "__main__":
    serve()
