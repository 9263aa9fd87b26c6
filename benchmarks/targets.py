"""Devices that are not there, for which XLA's own compilers work all the same, and the rates that estimates take."""

import os
from typing import NamedTuple


class Target(NamedTuple):
    """A kind of device. The rates are about what good kernels reach, not what the data sheet says.

    Attributes:
      platform: 'cuda' or 'tpu'.
      bytes_per_second: From and to the device's memory.
      flops_per_second: Of matrix products of 16-bit numbers.
      launch_seconds: The least that a kernel costs, or on a TPU an operation of the program.
      topologies: Number of devices -> the smallest topology that has so many, as libtpu names it.
      float32_share: Speed of products of 32-bit numbers, as a share of that of 16-bit ones (TF32; a TPU rounds).
    """

    platform: str
    bytes_per_second: float
    flops_per_second: float
    launch_seconds: float
    topologies: dict[int, str]
    float32_share: float = 1.0


_V5E = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_V5P = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
TARGETS = {
    "h100": Target("cuda", 3.0e12, 8.0e14, 3e-6, {}, float32_share=0.5),
    "h200": Target("cuda", 4.3e12, 8.0e14, 3e-6, {}, float32_share=0.5),
    "a100": Target("cuda", 1.8e12, 2.8e14, 3e-6, {}, float32_share=0.5),
    "v5e": Target("tpu", 0.8e12, 1.97e14, 1e-6, _V5E),
    "v5p": Target("tpu", 2.7e12, 4.59e14, 1e-6, _V5P),
}
# What XLA asks a GPU for when there is one: the data sheets' numbers.
_GPU = """
gpu_device_info {{
  name: "{name}" model_str: "{name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
  cuda_compute_capability {{ {capability} }} core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {ghz}
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: {cache} ecc_enabled: true
  pcie_bandwidth: {pcie} shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared}
  shared_memory_per_core: {shared_per_core} registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER = {
    "capability": "major: 9 feature_extension: ACCELERATED_FEATURES",
    "cores": 132,
    "fpus": 128,
    "ghz": 1.98,
    "cache": 50 * 2**20,
    "pcie": 32 * 2**30,
    "shared": 227 * 2**10,
    "shared_per_core": 228 * 2**10,
}
_AMPERE = {
    "capability": "major: 8",
    "cores": 108,
    "fpus": 64,
    "ghz": 1.41,
    "cache": 40 * 2**20,
    "pcie": 16 * 2**30,
    "shared": 163 * 2**10,
    "shared_per_core": 164 * 2**10,
}
_GPUS = {
    "h100": _HOPPER | {"name": "NVIDIA H100 80GB HBM3", "memory": 79 * 2**30, "bandwidth": 3_352_320_000_000},
    "h200": _HOPPER | {"name": "NVIDIA H200", "memory": 139 * 2**30, "bandwidth": 4_800_000_000_000},
    "a100": _AMPERE | {"name": "NVIDIA A100-SXM4-80GB", "memory": 79 * 2**30, "bandwidth": 2_039_000_000_000},
}


def prepare(name: str) -> None:
    """Sets what libtpu reads; to be called before JAX is imported."""
    if TARGETS[name].platform == "tpu":
        kind = {"v5e": "v5litepod-4", "v5p": "v5p-8"}[name]
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": kind, "TPU_WORKER_HOSTNAMES": "localhost"}


def devices(name: str, number: int) -> list:
    """Returns devices that programs can be compiled for, and nothing else.

    Raises:
      ValueError: If no known topology has so many.
    """
    from jax.experimental import topologies

    target = TARGETS[name]
    if target.platform == "cuda":
        text = _GPU.format(**_GPUS[name])
        found = topologies.get_topology_desc(
            platform="cuda", topology_name=name, topology=f"1x1x{number}", target_config=text
        )
    else:
        fitting = [size for size in target.topologies if size >= number]
        if not fitting:
            raise ValueError(f"{name} has at most {max(target.topologies)} devices here, not {number}.")
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{target.topologies[min(fitting)]}")
    return found.devices[:number]
