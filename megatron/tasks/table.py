"""All tasks. A new one is one entry in a file of its like, and one test with rows in its official form."""

from __future__ import annotations

import difflib

from megatron.errors import UserError
from megatron.tasks.choice_tasks import CHOICE_TASKS
from megatron.tasks.clue import CLUE, OWN_TEXTS
from megatron.tasks.fewclue import FEWCLUE
from megatron.tasks.pairs import PAIRS
from megatron.tasks.reading import READING
from megatron.tasks.tagging_tasks import TAGGING_TASKS
from megatron.tasks.task import Task
from megatron.tasks.text_tasks import TEXT_TASKS

TASKS = (*CLUE, *TEXT_TASKS, *READING, *CHOICE_TASKS, *TAGGING_TASKS, *FEWCLUE, PAIRS, OWN_TEXTS)


def find_task(name: str) -> Task:
    """The task of a name, upper or lower case. Raises `UserError` that lists the tasks and names the nearest."""
    tasks = {task.name: task for task in TASKS}
    if name.lower() in tasks:
        return tasks[name.lower()]
    near = difflib.get_close_matches(name.lower(), tasks, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"--task {name}: unknown task{hint}; the tasks are {', '.join(tasks)}")
