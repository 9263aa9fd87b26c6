"""How XLA should compile these models."""

import jax


def compiler_options() -> dict[str, str] | None:
    """Returns options for `jax.jit(..., compiler_options=...)` on the default backend; None = its defaults.

    On CPU: without XLA's YNN fusions, which keep scratch memory of their own (`memory_analysis` does not show it) and
    make a step of these models about 7 % slower; see docs/performance.md.
    """
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else None
