"""Mistakes a user can make, and how a command ends because of them."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """A mistake the user can mend: the message says what is wrong, where, and what to do."""


class JobError(Exception):
    """The job cannot go on, through no mistake in its options: a process or a connection is gone."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one `UserError` that names all problems, if there are any."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError("\n  - ".join([f"{len(problems)} problems:", *problems]))


def program_name() -> str:
    """The command that runs, for messages."""
    return os.path.basename(sys.argv[0])


def reason_of(error: BaseException) -> str:
    """An error in one line, for those who did not raise it."""
    text = str(error).strip()
    if isinstance(error, (UserError, JobError)):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def main_guard(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0 when done, 2 with one message on a `UserError`, 1 on a `JobError`, 130 on Ctrl-C.

    Any other error is 1 too, after its traceback. The exit does not wait for other ranks or threads: after an error
    they may never arrive.
    """
    code = 0
    try:
        main()
    except UserError as error:
        print(f"{program_name()}: error: {error}", file=sys.stderr)
        code = 2
    except JobError as error:
        print(f"{program_name()}: the job ends: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"{program_name()}: interrupted", file=sys.stderr)
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(0)
