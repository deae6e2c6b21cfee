#!/usr/bin/env bash
# torch 2.14.1 (gloo, torchrun): a process group that is opened after another was closed may meet addresses of the closed one.
#
# Expected: after destroy_process_group, init_process_group opens a new group, whichever process comes first.
# Seen: both groups write their addresses under the same names into the store of torchrun, which outlives them. Where one
# process opens the second group a second before the other, it reads the other's old address, and the call ends with "Connection
# refused" although all processes live. Where they come at the same time it works, so that small tests pass.
# Hurt: programs under torchrun that open a group for each of several jobs. A dist.PrefixStore of a name of its own a group ends
# that: the same program with one does open both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
python="$folder/environment/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat >"$folder/groups.py" <<'PYTHON'
import datetime
import os
import sys
import time

import torch
import torch.distributed as dist

rank, limit = int(os.environ["RANK"]), datetime.timedelta(seconds=15)
own_names = sys.argv[1] == "own"
meeting_place = next(dist.rendezvous("env://", timeout=limit))[0] if own_names else None
for number in range(2):
    if number and rank == 0:
        time.sleep(1)
    try:
        if own_names:
            store = dist.PrefixStore(f"group {number}", meeting_place)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
        else:
            dist.init_process_group("gloo", timeout=limit)
    except RuntimeError as error:
        print(f"refused {number}" if "Connection refused" in str(error) else f"other {error}", flush=True)
        sys.exit(1)
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == 2
    dist.destroy_process_group()
    print(f"opened {number}\n", end="", flush=True)
PYTHON
run() {
    "$python" -m torch.distributed.run --standalone --nproc-per-node=2 "$folder/groups.py" "$1" 2>/dev/null || true
}
plain=$(run plain)
own=$(run own)
echo "torch $("$python" -c 'import torch; print(torch.__version__)')"
echo "expected: two processes open both groups"
echo "seen: $(grep -c 'refused 1' <<<"$plain" || true) of them refused at the second; with names of its own a group: $(grep -c 'opened 1' <<<"$own" || true) of 2 opened it"
grep -q 'refused 1' <<<"$plain" && [ "$(grep -c 'opened 1' <<<"$own")" = 2 ]
