"""pretrain_bert.py, of which one rank fails in its third step or in start-up: `failing.py HOW RANK [flags]`.

HOW: sleep, stop, raise, kill: in the third step; late: sleep in the phase "vocabulary" of start-up.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from megatron.errors import main_guard
from megatron.training import launch, loop
from pretrain_bert import main


def fail(how: str) -> None:
    """Fail as told."""
    if how in ("sleep", "late"):
        time.sleep(1000)
    elif how == "raise":
        raise MemoryError("no room on the device")
    else:
        os.kill(os.getpid(), signal.SIGSTOP if how == "stop" else signal.SIGKILL)


if __name__ == "__main__":
    how, rank, *sys.argv[1:] = sys.argv[1:]
    if os.environ["RANK"] == rank:
        train_step, load_tokenizer = loop.train_step, launch.load_tokenizer
        steps: list[int] = []

        def failing_step(*arguments: Any, **options: Any) -> Any:
            """A step, of which the third fails."""
            steps.append(len(steps))
            if len(steps) == 3:
                fail(how)
            return train_step(*arguments, **options)

        def late_tokenizer(*arguments: Any) -> Any:
            """The tokenizer, too late."""
            fail(how)
            return load_tokenizer(*arguments)

        if how == "late":
            launch.load_tokenizer = late_tokenizer
        else:
            loop.train_step = failing_step
    main_guard(main)
