"""What a run trains: the model and its weights on the mesh, adapters, the optimizer, the first or saved state."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from care_jax import models, sharding
from care_jax.config import Config
from care_jax.models import lora
from care_jax.models.hf import safetensors_io
from care_jax.training import placing
from care_jax.training.forward.cache import fingerprint
from care_jax.training.objective import Objective
from care_jax.training.optimizer import make_optimizer, make_schedule
from care_jax.training.step import State, init_state, make_step


@dataclasses.dataclass
class Built:
    """adapters: None in full training. weights: the fingerprint of `params` as the run starts from them."""

    model: Any
    params: Any
    weights: str
    adapters: Any
    adapter_shardings: Any
    optimizer: optax.GradientTransformation
    schedule: Callable[[Any], Any]


def build(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, total: int) -> Built:
    """The model of `folder` and what trains it for `total` steps: all weights, or adapters on a base that stays."""
    model, params = load_model(config, mesh, folder)
    adapters, shardings = new_adapters(config, model, mesh)
    optimizer, schedule = optimizer_of(config, model.arch, total)
    return Built(model, params, fingerprint(params), adapters, shardings, optimizer, schedule)


def optimizer_of(
    config: Config, arch: models.Arch, total: int
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """The optimizer of all weights, or of adapters, for `total` steps; and its schedule."""
    schedule = make_schedule(config.optimizer, total)
    decay = models.decay_mask(arch) if config.model.lora is None else None
    return make_optimizer(config.optimizer, schedule, decay), schedule


def configured(config: Config, model: Any) -> Any:
    """The model as a run's rows and adapters want it."""
    model = model.clone(shared_prompts=config.batch.share_prompts and config.batch.packing)
    adapted = config.model.lora
    return model if adapted is None else lora.attach(model, adapted.r, adapted.alpha)


def base_dtype(config: Config) -> str:
    """Of the weights as they are held: under adapters, of the base."""
    return config.model.param_dtype if config.model.lora is None else config.model.lora.base_dtype


def check_folder(config: Config, folder: pathlib.Path) -> None:
    """Raises UserError for a family or a folder that cannot be loaded, before anything is read or tokenized."""
    models.read_config(folder)
    if config.model.init == "pretrained":
        safetensors_io.folder_tensors(folder)


def load_model(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path) -> tuple[Any, Any]:
    """The model and its weights on the mesh: pretrained, or random from a config.json and the run's seed.

    With `model.lora` the weights are a base in its `base_dtype`, and the model takes adapters.
    """
    options = {"dtype": config.model.dtype, "remat": config.model.remat, "attention": config.model.attention}
    dtype = base_dtype(config)
    if config.model.init == "random":
        model = models.from_config(folder, **options)
        params = models.init_params(model, config.seed, mesh, param_dtype=dtype)
    else:
        model, params = models.from_pretrained(folder, mesh=mesh, param_dtype=dtype, **options)
    return configured(config, model), params


def new_adapters(config: Config, model: Any, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Fresh adapters and their shardings, (None, None) in full training. B is zero: the start is the base."""
    adapted = config.model.lora
    if adapted is None:
        return None, None
    made = lora.init(model, adapted.r, adapted.target_modules, seed=config.seed, mesh=mesh)
    return made, lora.shardings(model.arch, adapted.r, adapted.target_modules, mesh)


def abstract_state(built: Built, mesh: jax.sharding.Mesh) -> tuple[State, State]:
    """The state's shapes, and its shardings."""
    abstract = jax.eval_shape(lambda params, adapters: init_state(params, built.optimizer, adapters), *_start(built))
    weights = models.param_shardings(built.model.arch, mesh)
    return abstract, placing.state_shardings(abstract, weights, built.optimizer, mesh, built.adapter_shardings)


def train_program(
    config: Config,
    objective: Objective,
    model: Any,
    optimizer: optax.GradientTransformation,
    shardings: tuple[State, Any],
) -> Any:
    """The jitted step of a run, (state, batch) -> (state, metrics), the state donated: what `plan` compiles too.

    shardings: of the state and of the batch.
    """
    step = make_step(
        model,
        objective,
        optimizer,
        accumulate_dtype=jnp.dtype(config.optimizer.accumulate_dtype),
        examples=config.batch.examples,
    )
    everywhere = sharding.replicated(shardings[0].step.mesh)
    return jax.jit(step, in_shardings=shardings, out_shardings=(shardings[0], everywhere), donate_argnums=0)


def new_state(built: Built, shardings: State, *, keep: bool) -> State:
    """The state before the first update. keep: the starting weights are needed beside it, and stay."""
    make = jax.jit(
        lambda params, adapters: init_state(params, built.optimizer, adapters),
        out_shardings=shardings,
        donate_argnums=() if keep else (0, 1),
    )
    return make(*_start(built))


def like_saved(built: Built, abstract: State, shardings: State) -> State:
    """What a saved state is restored into: shapes and placements, and the base under adapters itself."""
    like = placing.placed_shapes(abstract, shardings)
    return like if built.adapters is None else dataclasses.replace(like, params=built.params)


def _start(built: Built) -> tuple[Any, Any]:
    return built.params, built.adapters
