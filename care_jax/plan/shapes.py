"""The shapes of a run's state and batch, without reading weights or data."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from care_jax import models, sharding
from care_jax.config import Config
from care_jax.data.packing.batch import ARRAYS, Batch, BatchShape
from care_jax.data.packing.capacities import round_up
from care_jax.models import arch as arch_lib
from care_jax.models import lora
from care_jax.models.arch import Arch
from care_jax.models.decoder import Decoder
from care_jax.plan.known import arch_of
from care_jax.plan.targets import Target
from care_jax.training import placement
from care_jax.training.objective import Objective, objective_of
from care_jax.training.optimizer import optimizer_and_schedule
from care_jax.training.state import InitialWeights, TrainingSetup, abstract_state, configure_model, params_dtype
from care_jax.training.step import State

_TYPICAL_TOKENS = 512  # assumed tokens of the mean example (CARE: 275 per pair)
_SHORTEST = 8  # assumed tokens of the shortest response
_STEPS = 100  # length of the schedule; it changes no size


def batch_shape_of(config: Config, objective: Objective) -> BatchShape:
    """Returns upper bounds of the static sizes, chosen without the data: every token may be a completion's.

    One microbatch if a step is certain to fit into one, else as many as a step of typical examples takes, at least two.
    Their number changes only the size of the batch on the device.
    """
    batch = config.batch
    slots = batch.microbatch_rows * batch.row_length
    responses = batch.microbatch_rows if not batch.packing else round_up(max(1, slots // _SHORTEST), 8)
    several = objective.view == "lists" or (objective.view == "pairs" and batch.unit == "group")
    longest = config.data.max_length * (2 if objective.view == "pairs" else 1)
    single = not several and batch.packing and batch.examples * longest <= slots
    typical = _TYPICAL_TOKENS * (4 if several else 1)
    return BatchShape(
        rows=batch.microbatch_rows,
        row_length=batch.row_length,
        responses=responses,
        completion_tokens=slots,
        pairs=round_up(max(1, 2 * responses), 8) if objective.view == "pairs" else 1,
        lists=round_up(max(1, responses // 2), 8) if objective.view == "lists" else 1,
        width=16 if objective.view == "lists" else 1,
        microbatches=1 if single else max(2, math.ceil(batch.examples * typical / slots)),
        packing=batch.packing,
        share_responses=batch.share_responses,
        share_prompts=batch.share_prompts,
    )


def abstract_batch(shape: BatchShape, mismatched: BatchShape | None = None) -> Batch:
    """Returns the shapes and dtypes of the batch that `data.packing.fill.fill` makes for this shape."""
    return Batch(
        **{name: jax.ShapeDtypeStruct(shape.array_shape(name), spec.dtype) for name, spec in ARRAYS.items()},
        n_microbatches=jax.ShapeDtypeStruct((), np.int32),
        mismatched=None if mismatched is None else abstract_batch(mismatched),
    )


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Everything that the programs of a run take, as abstract arrays placed on the mesh.

    forward_batch: one microbatch of single responses, as the reference and the evaluation use it.
    absent: the target's device is not here, so this machine's compiler is used in place of its own.
    """

    config: Config
    objective: Objective
    setup: TrainingSetup
    mesh: jax.sharding.Mesh
    batch_shape: BatchShape
    state: State
    state_shardings: State
    batch: Batch
    batch_shardings: Batch
    forward_batch: Batch
    absent: bool = False


def shapes_of(config: Config, target: Target, arch: Arch | None = None) -> Shapes:
    """Returns the shapes of a run on a target. arch: the `Arch` of `config.model`, if known already.

    Raises UserError, with the numbers, for sizes that the mesh does not divide.
    """
    arch = arch_of(config.model.path, config.model.revision) if arch is None else arch
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=target.devices)
    objective = objective_of(config)
    batch_shape = batch_shape_of(config, objective)
    sharding.sharding(mesh, ("rows",), (config.batch.microbatch_rows,), "batch.microbatch_rows")
    single = dataclasses.replace(batch_shape, pairs=1, lists=1, width=1, microbatches=1)
    mismatched = dataclasses.replace(single, microbatches=batch_shape.microbatches) if objective.needs_kl else None
    settings = config.model
    plain = Decoder(arch, dtype=jnp.dtype(settings.dtype), remat=settings.remat, attention=settings.attention)
    model = configure_model(config, plain)
    params = models.abstract_params(arch, params_dtype(config), mesh)
    adapters = adapter_shardings = None
    if settings.lora is not None:
        rank, modules = settings.lora.r, settings.lora.target_modules
        declared = lora.declarations(arch, rank, modules)
        adapter_shardings = lora.shardings(arch, rank, modules, mesh)
        adapters = arch_lib.map_weights(lambda _, w: jax.ShapeDtypeStruct(w.shape, jnp.float32), declared)
    optimizer, schedule = optimizer_and_schedule(config, arch, _STEPS)
    setup = TrainingSetup(model, optimizer, schedule, adapter_shardings)
    abstract, state_shardings = abstract_state(setup, InitialWeights(params, adapters, ""), mesh)
    batch, forward = abstract_batch(batch_shape, mismatched), abstract_batch(single)
    batch_shardings = placement.batch_shardings(batch, mesh)
    return Shapes(
        config, objective, setup, mesh, batch_shape,
        placement.with_shardings(abstract, state_shardings), state_shardings,
        placement.with_shardings(batch, batch_shardings), batch_shardings,
        placement.with_shardings(forward, placement.batch_shardings(forward, mesh)), target.estimate,
    )  # fmt: skip
