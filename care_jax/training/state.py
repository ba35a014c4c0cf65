"""What a run trains: the model and its optimizer, the initial weights on the mesh, the state made of them, and the
compiled step that updates it.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax import models, sharding
from care_jax.config import Config
from care_jax.data.packing.batch import Batch
from care_jax.distributed import say
from care_jax.models import lora
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder
from care_jax.models.hf import safetensors_io
from care_jax.training import placement
from care_jax.training.forward.cache import fingerprint
from care_jax.training.objective import Objective
from care_jax.training.optimizer import optimizer_and_schedule
from care_jax.training.step import State, init_state, make_step

TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
Shaped = jax.Array | jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """The model and its optimizer, without arrays. adapter_shardings: None if all weights are trained."""

    model: Decoder
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    adapter_shardings: Params | None


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The weights that a run starts from. adapters: None if all weights are trained. fingerprint: hash of `params`."""

    params: Params
    adapters: Params | None
    fingerprint: str


def build(config: Config, mesh: Mesh, folder: pathlib.Path, steps: int) -> tuple[TrainingSetup, InitialWeights]:
    """Loads the model of `folder` and makes what trains it for `steps` steps: all its weights, or adapters."""
    model, params = load_model(config, mesh, folder)
    adapters, shardings = new_adapters(config, model, mesh)
    optimizer, schedule = optimizer_and_schedule(config, model.arch, steps)
    weights = InitialWeights(params, adapters, fingerprint(params))
    return TrainingSetup(model, optimizer, schedule, shardings), weights


def check_model_folder(config: Config, folder: pathlib.Path) -> None:
    """Raises UserError for a family or a folder that cannot be loaded, before anything is read or tokenized."""
    models.read_config(folder)
    if config.model.init == "pretrained":
        safetensors_io.folder_tensors(folder)


def load_model(config: Config, mesh: Mesh, folder: pathlib.Path) -> tuple[Decoder, Params]:
    """Loads the model and its weights on the mesh: pretrained, or random from a config.json and the run's seed.

    With `model.lora` the weights are the frozen base in its `base_dtype`, and the model takes adapters.
    """
    dtype, remat, attention = config.model.dtype, config.model.remat, config.model.attention
    if config.model.init == "random":
        model = models.from_config(folder, dtype=dtype, remat=remat, attention=attention)
        params = models.init_params(model, config.seed, mesh, param_dtype=params_dtype(config))
    else:
        model, params = models.from_pretrained(
            folder, mesh=mesh, dtype=dtype, param_dtype=params_dtype(config), remat=remat, attention=attention
        )
    return configure_model(config, model), params


def configure_model(config: Config, model: Decoder) -> Decoder:
    """Returns the model with the attention that the run's rows need, and with adapters if it trains them."""
    model = model.clone(shared_prompts=config.batch.share_prompts and config.batch.packing)
    options = config.model.lora
    return model if options is None else lora.attach(model, options.r, options.alpha)


def params_dtype(config: Config) -> str:
    """Returns the dtype of the model's weights; with adapters, that of the frozen base."""
    return config.model.param_dtype if config.model.lora is None else config.model.lora.base_dtype


def new_adapters(config: Config, model: Decoder, mesh: Mesh) -> tuple[Params | None, Params | None]:
    """Makes adapters and their shardings; (None, None) in full training. B is zero: the initial policy is the base."""
    options = config.model.lora
    if options is None:
        return None, None
    adapters = lora.init(model, options.r, options.target_modules, seed=config.seed, mesh=mesh)
    return adapters, lora.shardings(model.arch, options.r, options.target_modules, mesh)


def abstract_state(setup: TrainingSetup, weights: InitialWeights, mesh: Mesh) -> tuple[State, State]:
    """Returns the state's shapes, and its shardings."""
    abstract = jax.eval_shape(
        lambda params, adapters: init_state(params, setup.optimizer, adapters), weights.params, weights.adapters
    )
    return abstract, state_shardings(abstract, setup, mesh)


def state_shardings(state: State, setup: TrainingSetup, mesh: Mesh) -> State:
    """Returns the shardings of an abstract state: moments as the weights they belong to, scalars replicated.

    Factored moments (adafactor's) lack one dimension of their weight, and are sharded along the others.
    """
    everywhere = sharding.replicated(mesh)
    weights = models.param_shardings(setup.model.arch, mesh)

    def moment(leaf: Shaped, weight: Shaped, placed: NamedSharding) -> NamedSharding:
        if leaf.shape == weight.shape:
            return placed
        parts = (*placed.spec, *(None,) * (len(weight.shape) - len(placed.spec)))
        for axis in range(len(weight.shape)):  # if two dimensions are of one size, either will do
            if leaf.shape == weight.shape[:axis] + weight.shape[axis + 1 :]:
                return NamedSharding(mesh, PartitionSpec(*parts[:axis], *parts[axis + 1 :]))
        return everywhere

    opt_state = optax.tree_utils.tree_map_params(
        setup.optimizer,
        moment,
        state.opt_state,
        state.trainable(),
        weights if state.lora is None else setup.adapter_shardings,
        transform_non_params=lambda _: everywhere,
    )
    return State(everywhere, everywhere, weights, setup.adapter_shardings, opt_state)


def new_state(setup: TrainingSetup, weights: InitialWeights, shardings: State, *, keep: bool) -> State:
    """Makes the state before the first step. keep: do not donate the initial weights, they are needed later."""
    make = jax.jit(
        lambda params, adapters: init_state(params, setup.optimizer, adapters),
        out_shardings=shardings,
        donate_argnums=() if keep else (0, 1),
    )
    return make(weights.params, weights.adapters)


def restore_target(weights: InitialWeights, abstract: State, shardings: State) -> State:
    """Returns the target of a restore: shapes and shardings; with adapters, the frozen base itself."""
    like = placement.with_shardings(abstract, shardings)
    return like if weights.adapters is None else dataclasses.replace(like, params=weights.params)


def jit_step(
    config: Config, objective: Objective, setup: TrainingSetup, shardings: State, batch_shardings: Batch
) -> jax.stages.Wrapped:
    """Returns the jitted step of a run, (state, batch) -> (state, metrics). The state is donated.

    `care-jax plan` compiles the same function.
    """
    step = make_step(
        setup.model,
        objective,
        setup.optimizer,
        accumulate_dtype=jnp.dtype(config.optimizer.accumulate_dtype),
        examples=config.batch.examples,
    )
    everywhere = sharding.replicated(shardings.step.mesh)
    return jax.jit(
        step, in_shardings=(shardings, batch_shardings), out_shardings=(shardings, everywhere), donate_argnums=0
    )


def compile_step(jitted: jax.stages.Wrapped, state: State, batch: Batch) -> tuple[TrainStep, float]:
    """Compiles the step for this state and batch; returns the program and the seconds that it took."""
    began = time.perf_counter()
    compiled = jitted.lower(state, batch).compile()
    seconds = time.perf_counter() - began
    say(f"train step compiled in {seconds:.1f} s")
    return compiled, seconds
