import io
import re

import pytest
from rich.console import Console

from timm_mvhybrid.training.progress import TrainingProgress


def show(*, terminal, enabled=True):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=140)
    with TrainingProgress(100, start_step=40, enabled=enabled, console=console) as progress:
        progress.update(41, loss=9.87654, images_per_second=321.4)
        progress.update(42)
        progress.say("warning: a[b].png\n is unreadable", style="yellow")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())


def test_a_terminal_sees_steps_loss_speed_and_time_left():
    shown = show(terminal=True)
    last = shown.replace("\r", "\n").strip().splitlines()[-1]
    assert "42/100" in last
    assert "loss 9.877, 321.4 images/s" in last
    assert re.search(r"left \d:\d\d:\d\d|left -:--:--", last)
    assert "warning: a[b].png is unreadable" in shown


def test_a_pipe_sees_messages_only():
    assert show(terminal=False) == "warning: a[b].png is unreadable\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_show_nothing(terminal):
    assert show(terminal=terminal, enabled=False) == ""
