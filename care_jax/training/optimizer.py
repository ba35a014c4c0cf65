"""Optimizers and schedules from optax, by the names of the configuration."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from care_jax import models
from care_jax.config import Config, OptimizerConfig, steps_of
from care_jax.errors import UserError

Schedule = Callable[[Any], Any]


def optimizer_and_schedule(
    config: Config, arch: models.Arch, total: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """Makes the optimizer of all weights, or of the adapters, for `total` steps; and its schedule."""
    schedule = make_schedule(config.optimizer, total)
    decay_mask = models.decay_mask(arch) if config.model.lora is None else None
    return make_optimizer(config.optimizer, schedule, decay_mask), schedule


def make_schedule(config: OptimizerConfig, total: int) -> Schedule:
    """The learning rate of update `count` (from 0) of `total`.

    Warmup rises linearly and reaches the peak at its last step, so that no update has a learning rate of 0. Then cosine
    or linear towards 0, or constant.
    """
    warmup = steps_of(config.warmup, total)
    peak = config.learning_rate

    def schedule(count):
        # A number of the host's is answered there: the devices are busy with the next step already.
        xp: Any = np if isinstance(count, int) else jnp
        count = xp.asarray(count, xp.float32)
        rising = peak * (count + 1) / max(warmup, 1)
        progress = xp.clip((count - warmup) / max(total - warmup, 1), 0, 1)
        falling = {
            "constant": xp.full_like(progress, peak),
            "linear": peak * (1 - progress),
            "cosine": peak * 0.5 * (1 + xp.cos(xp.pi * progress)),
        }[config.schedule]
        return xp.where(count < warmup, rising, falling)

    return schedule


def make_optimizer(config: OptimizerConfig, schedule: Schedule, decay_mask: Any = None) -> optax.GradientTransformation:
    """Clipping by global norm, then the named optimizer. Decay as AdamW's: times the learning rate, by `decay_mask`.

    `optimizer.name` may be `module:function`; it is called with learning_rate and those flat keys that it names.
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
    return in_dtype(rule, jnp.dtype(config.moment_dtype))


def in_dtype(rule: optax.GradientTransformation, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Keeps the moments of `rule` in `dtype` between updates, whatever the weights' dtype; an update is computed in
    float32.
    """

    def cast(state, to):
        def one(x):
            return x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim else x

        return jax.tree.map(one, state)

    def init(params):
        return cast(rule.init(params), dtype)

    def update(gradient, state, params=None):
        updates, state = rule.update(cast(gradient, jnp.float32), cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _from_module(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    module, _, name = config.name.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"optimizer.name: cannot load {config.name!r}: {error}") from error
    keys = ("b1", "b2", "eps", "weight_decay")
    named = inspect.signature(function).parameters
    return function(learning_rate=schedule, **{key: getattr(config, key) for key in keys if key in named})
