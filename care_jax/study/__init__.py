"""Controlled studies: arms x grid x seeds of resumable runs, evaluated alike, in one table with its pictures."""

from care_jax.study.spec import Study, load_study
from care_jax.study.stages import Paused, run

__all__ = ["Paused", "Study", "load_study", "run"]
