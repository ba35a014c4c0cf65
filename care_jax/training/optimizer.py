"""Optimizers and schedules from optax, by the names of the configuration."""

import importlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from care_jax import models
from care_jax.config import Config, OptimizerConfig, steps_of
from care_jax.errors import UserError
from care_jax.models.arch import Params


def optimizer_and_schedule(
    config: Config, arch: models.Arch, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Makes the optimizer of all weights, or of the adapters, for `steps` steps; and its schedule."""
    schedule = make_schedule(config.optimizer, steps)
    decay_mask = models.decay_mask(arch) if config.model.lora is None else None
    return make_optimizer(config.optimizer, schedule, decay_mask), schedule


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Makes the learning rate of step `count` (from 0) of `steps`.

    Warmup rises linearly and reaches the peak at its last step, so that no step has a learning rate of 0. Then it falls
    towards 0 by a cosine or linearly, or stays constant.
    """
    warmup = steps_of(config.warmup, steps)
    peak = config.learning_rate

    def schedule(count):
        # An int is computed on the host: the devices are busy with the next step already.
        xp: Any = np if isinstance(count, int) else jnp
        count = xp.asarray(count, xp.float32)
        rising = peak * (count + 1) / max(warmup, 1)
        progress = xp.clip((count - warmup) / max(steps - warmup, 1), 0, 1)
        falling = {
            "constant": xp.full_like(progress, peak),
            "linear": peak * (1 - progress),
            "cosine": peak * 0.5 * (1 + xp.cos(xp.pi * progress)),
        }[config.schedule]
        return xp.where(count < warmup, rising, falling)

    return schedule


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, decay_mask: Params | None = None
) -> optax.GradientTransformation:
    """Clips by the global norm, then applies the named optimizer. Decay is AdamW's: times the learning rate.

    decay_mask: which weights decay; None: all. `optimizer.name` may be `module:function`, which is called with
    learning_rate and those flat keys that it names.
    """
    decay = optax.add_decayed_weights(config.weight_decay, decay_mask) if config.weight_decay else optax.identity()
    rate = optax.scale_by_learning_rate(schedule)
    if config.name == "adamw":
        rule = optax.chain(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps), decay, rate)
    elif config.name == "lion":
        rule = optax.chain(optax.scale_by_lion(b1=config.b1, b2=config.b2), decay, rate)
    elif config.name == "adafactor":
        rule = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), decay, rate)
    elif config.name == "sgd":
        rule = optax.chain(decay, rate)
    else:
        rule = _from_module(config, schedule)
    if config.max_grad_norm is not None:
        rule = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rule)
    return with_moment_dtype(rule, jnp.dtype(config.moment_dtype))


def with_moment_dtype(rule: optax.GradientTransformation, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Keeps the moments of `rule` in `dtype` between steps, whatever the weights' dtype. Updates are computed in
    float32.
    """

    def cast(tree, to):
        def cast_leaf(x):
            return x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim else x

        return jax.tree.map(cast_leaf, tree)

    def init(params):
        return cast(rule.init(params), dtype)

    def update(gradient, state, params=None):
        updates, state = rule.update(cast(gradient, jnp.float32), cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _from_module(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    module, _, name = config.name.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"optimizer.name: cannot load {config.name!r}: {error}") from error
    keys = ("b1", "b2", "eps", "weight_decay")
    parameters = inspect.signature(function).parameters
    return function(learning_rate=schedule, **{key: getattr(config, key) for key in keys if key in parameters})
