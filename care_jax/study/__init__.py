"""Controlled studies: resumable runs for every arm, grid point and seed, in one table with its plots."""

from care_jax.study.spec import Study, load_study
from care_jax.study.stages import Paused, run

__all__ = ["Paused", "Study", "load_study", "run"]
