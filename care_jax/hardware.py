"""Accelerators: the table of chips by the name that jax gives them, the platform, the memory that may be used."""

import dataclasses
import os

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

GIB = 2**30
# Plans use this fraction of a device's memory; the rest is for buffers of collectives and fragmentation.
MEMORY_FRACTION = 0.9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts them (on TPU 7x half a chip).

    memory: bytes that a program may use (TPUs: what libtpu's compiler allows; GPUs: the data sheet). flops: dense
    bfloat16 operations per second. source: where that figure is published.
    """

    name: str
    memory: int
    flops: float
    source: str


_TPU = "cloud.google.com/tpu/docs/"
_NVIDIA = "nvidia.com data sheet, "
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("TPU v4", int(30.75 * GIB), 275e12, _TPU + "v4"),
    "TPU v5 lite": Chip("TPU v5e", int(15.75 * GIB), 197e12, _TPU + "v5e"),
    "TPU v5": Chip("TPU v5p", int(95.74 * GIB), 459e12, _TPU + "v5p"),
    "TPU v6 lite": Chip("TPU v6e", int(31.25 * GIB), 918e12, _TPU + "v6e"),
    "TPU7x": Chip("TPU 7x", int(94.75 * GIB), 2307e12 / 2, _TPU + "tpu7x (a chip is two devices)"),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80 GB", 80 * 10**9, 312e12, _NVIDIA + "A100"),
    "NVIDIA A100 80GB PCIe": Chip("A100 80 GB PCIe", 80 * 10**9, 312e12, _NVIDIA + "A100"),
    "NVIDIA H100 80GB HBM3": Chip("H100", 80 * 10**9, 989e12, _NVIDIA + "H100 (SXM)"),
    "NVIDIA H200": Chip("H200", 141 * 10**9, 989e12, _NVIDIA + "H200"),
    "NVIDIA L4": Chip("L4", 24 * 10**9, 121e12, _NVIDIA + "L4 (half of the figure with sparsity)"),
    "NVIDIA GeForce RTX 4090": Chip("RTX 4090", 24 * 10**9, 165e12, "nvidia.com Ada whitepaper, appendix A"),
    "NVIDIA GeForce RTX 3090": Chip("RTX 3090", 24 * 10**9, 71e12, "nvidia.com Ampere GA102 whitepaper, appendix A"),
}


def claim_memory() -> None:
    """Lets jax use 92 % of a GPU's memory; call it before jax is asked for a device.

    The default is three quarters (jax 0.10), and plans use nine tenths (`MEMORY_FRACTION`). A fraction that is set in
    the environment is kept.
    """
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = "0.92"


def platform() -> str:
    """Returns cpu, gpu or tpu: that of the mesh in context (maybe only compiled for), else that of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    backend = jax.default_backend() if device is None else device.platform
    return "gpu" if backend in ("cuda", "rocm") else backend


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Returns the precision for matrix products: by default accelerators multiply float32 in fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
