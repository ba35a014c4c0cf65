"""Small files of tasks, and short ways to read and score them."""

import json

from care_jax.evaluation import tasks
from care_jax.evaluation.answers.responses import Answer
from care_jax.evaluation.items import Options

INCLUDE = {
    "language": "Chinese", "country": "China", "domain": "STEM", "subject": "Physics", "regional_feature": "agnostic",
    "level": "", "question": " 光速？ ", "answer": 2,
}  # fmt: skip
OPTIONS = ["一", "二", "三", "四"]


def write(path, text):
    """Writes a text file; returns its path."""
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_lines(path, rows):
    """Writes JSON lines; returns the path."""
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def answer(id_, text=None, logps=None):
    """An answer to the item of this id."""
    return Answer({}, id_, None, text, logps, "one")


def read(name, path, **options):
    """The items of the task of this name."""
    task, task_options = tasks.find(name, Options(**options))
    return tasks.read(task, path, task_options)


def result(name, path, answers, **options):
    """The result of the task of this name."""
    task, task_options = tasks.find(name, Options(**options))
    return tasks.score(task, tasks.read(task, path, task_options), answers, task_options)[0]
