"""Mistakes a user can make, and how a command ends because of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake the user can mend: the message says what is wrong, where, and what to do."""


class JobError(Exception):
    """The job cannot go on, through no mistake in its options: a process or a connection is gone."""


def main_guard(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0 when done, 2 with one message on a `UserError`, 1 on a `JobError`, 130 on Ctrl-C.

    The exit does not wait for other ranks or threads: after an error they may never arrive.
    """
    code = 0
    try:
        main()
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        code = 2
    except JobError as error:
        print(f"{os.path.basename(sys.argv[0])}: the job ends: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(0)
