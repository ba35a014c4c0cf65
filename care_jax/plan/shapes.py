"""What a run would hold, as shapes: state and batch without a weight read or a question seen."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from care_jax import models, sharding
from care_jax.config import Config
from care_jax.data.packing.capacities import round_up
from care_jax.data.packing.plans import Batch, BatchShape
from care_jax.models import arch as arch_lib
from care_jax.models import lora
from care_jax.models.arch import Arch
from care_jax.models.decoder import Decoder
from care_jax.training import placing
from care_jax.training import state as build
from care_jax.training.objective import Objective, objective_of
from care_jax.training.step import State

# Without the data: an example is not longer than this on the average (CARE: 275 tokens a pair), and a response has at
# least so many tokens.
_TYPICAL_TOKENS, _SHORTEST = 512, 8
_STEPS = 100  # of the schedule: its length changes no size


def layout_of(config: Config, objective: Objective) -> BatchShape:
    """The static sizes without the data: every token may be a completion's, so that nothing is larger in the run.

    One microbatch only where a step surely fits into one; else as many as a step of typical examples takes, at least
    two (their number changes no size on the device but that of the batch).
    """
    batch = config.batch
    slots = batch.microbatch_rows * batch.row_length
    responses = batch.microbatch_rows if not batch.packing else round_up(max(1, slots // _SHORTEST), 8)
    many = objective.view == "lists" or (objective.view == "pairs" and batch.unit == "group")
    most = config.data.max_length * (2 if objective.view == "pairs" else 1)
    sure = not many and batch.packing and batch.examples * most <= slots
    typical = _TYPICAL_TOKENS * (4 if many else 1)
    return BatchShape(
        rows=batch.microbatch_rows,
        row_length=batch.row_length,
        responses=responses,
        completions=slots,
        pairs=round_up(max(1, 2 * responses), 8) if objective.view == "pairs" else 1,
        groups=round_up(max(1, responses // 2), 8) if objective.view == "lists" else 1,
        width=16 if objective.view == "lists" else 1,
        microbatches=1 if sure else max(2, math.ceil(batch.examples * typical / slots)),
        packing=batch.packing,
        share_responses=batch.share_responses,
        share_prompts=batch.share_prompts,
    )


def abstract_batch(layout: BatchShape, mismatched: BatchShape | None = None) -> Batch:
    """The shapes and dtypes that `data.filling.fill` makes of a plan of this layout."""
    held = layout.microbatches

    def array(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((held, *shape), dtype)

    rows = layout.rows, layout.row_length
    names = ("tokens", "positions", "segment_ids", "prompt_segment_ids")
    return Batch(
        **{name: array(*rows) for name in names},
        completion_positions=array(layout.completions),
        predictor_positions=array(layout.completions),
        completion_segments=array(layout.completions),
        lengths=array(layout.responses),
        ratings=array(layout.responses, dtype=np.float32),
        ref_logps=array(layout.responses, dtype=np.float32),
        desirable=array(layout.responses, dtype=np.bool_),
        segment_weights=array(layout.responses, dtype=np.float32),
        pairs=array(layout.pairs, 2),
        pair_weights=array(layout.pairs, dtype=np.float32),
        groups=array(layout.groups, layout.width),
        group_mask=array(layout.groups, layout.width, dtype=np.bool_),
        group_weights=array(layout.groups, dtype=np.float32),
        n_microbatches=jax.ShapeDtypeStruct((), np.int32),
        mismatched=None if mismatched is None else abstract_batch(mismatched),
    )


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Everything that the programs of a run take, abstract and placed on the mesh.

    absent: the device is not here, and this machine's compiler stands in for its own.
    """

    config: Config
    objective: Objective
    model: Decoder
    optimizer: Any
    mesh: jax.sharding.Mesh
    layout: BatchShape
    state: State
    state_shardings: State
    batch: Batch
    batch_shardings: Batch
    forward_batch: Batch  # one microbatch, sized for single responses: of the reference and the evaluation
    forward_shardings: Batch
    absent: bool = False


def shapes(
    config: Config, arch: Arch, mesh: jax.sharding.Mesh, layout: BatchShape | None = None, absent: bool = False
) -> Shapes:
    """Raises UserError, with the numbers, for sizes that the mesh does not divide."""
    objective = objective_of(config)
    layout = layout_of(config, objective) if layout is None else layout
    sharding.sharding(mesh, ("rows",), (config.batch.microbatch_rows,), "batch.microbatch_rows")
    single = dataclasses.replace(layout, pairs=1, groups=1, width=1, microbatches=1)
    mismatched = dataclasses.replace(single, microbatches=layout.microbatches) if objective.needs_kl else None
    named = config.model
    plain = Decoder(arch, dtype=jnp.dtype(named.dtype), remat=named.remat, attention=named.attention)
    model = build.configured(config, plain)
    params = models.abstract_params(arch, build.base_dtype(config), mesh)
    adapters = adapter_shardings = None
    if (adapted := named.lora) is not None:
        declared = lora.declarations(arch, adapted.r, adapted.target_modules)
        adapter_shardings = lora.shardings(arch, adapted.r, adapted.target_modules, mesh)
        adapters = arch_lib.map_weights(lambda _, w: jax.ShapeDtypeStruct(w.shape, jnp.float32), declared)
    optimizer, schedule = build.optimizer_of(config, arch, _STEPS)
    built = build.Built(model, params, "", adapters, adapter_shardings, optimizer, schedule)
    abstract, state_shardings = build.abstract_state(built, mesh)
    batch, forward = abstract_batch(layout, mismatched), abstract_batch(single)
    batch_where, forward_where = placing.batch_shardings(batch, mesh), placing.batch_shardings(forward, mesh)
    return Shapes(
        config, objective, model, optimizer, mesh, layout,
        placing.placed_shapes(abstract, state_shardings), state_shardings,
        placing.placed_shapes(batch, batch_where), batch_where,
        placing.placed_shapes(forward, forward_where), forward_where, absent,
    )  # fmt: skip
