"""Whether a run fits on a machine, which need not be here: its programs are compiled ahead of time from shapes."""

from care_jax.plan.advice import Advice
from care_jax.plan.planning import Plan, plan
from care_jax.plan.programs import Program
from care_jax.plan.targets import Target

__all__ = ["Advice", "Plan", "Program", "Target", "plan"]
