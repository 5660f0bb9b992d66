"""All tasks. A new one is one entry in a file of its like, and one test with rows in its official form."""

from __future__ import annotations

import difflib

from megatron.errors import UserError
from megatron.tasks.sets.choices import CHOICE_TASKS
from megatron.tasks.sets.clue import CLUE, OWN_TEXTS
from megatron.tasks.sets.fewclue import FEWCLUE
from megatron.tasks.sets.pairs import PAIRS
from megatron.tasks.sets.reading import READING
from megatron.tasks.sets.tagging import TAGGING_TASKS
from megatron.tasks.sets.texts import TEXT_TASKS
from megatron.tasks.task import Task

TASKS = (*CLUE, *TEXT_TASKS, *READING, *CHOICE_TASKS, *TAGGING_TASKS, *FEWCLUE, PAIRS, OWN_TEXTS)


def find_task(name: str) -> Task:
    """The task of a name, upper or lower case. Raises `UserError` that lists the tasks and names the nearest."""
    tasks = {task.name: task for task in TASKS}
    if name.lower() in tasks:
        return tasks[name.lower()]
    near = difflib.get_close_matches(name.lower(), tasks, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"--task {name}: unknown task{hint}; the tasks are {', '.join(tasks)}")
