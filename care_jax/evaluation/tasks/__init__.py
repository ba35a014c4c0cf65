"""Evaluation tasks: what each reads, asks and scores. They need no model and import no jax."""

from care_jax.evaluation.tasks.registry import TASKS, Task, find, read, uses_logprobs
from care_jax.evaluation.tasks.results import score, score_lines

__all__ = ["TASKS", "Task", "find", "read", "score", "score_lines", "uses_logprobs"]
