"""Units laid out in rows of tokens: the batch and its sizes, the plan of a step, and filling its arrays."""

from care_jax.data.packing.batch import Batch, BatchShape
from care_jax.data.packing.plans import StepPlan, plan_responses, plan_step

__all__ = ["Batch", "BatchShape", "StepPlan", "plan_responses", "plan_step"]
