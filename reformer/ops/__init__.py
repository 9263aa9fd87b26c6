"""Pure JAX operations: no Flax, no configuration object, no I/O."""
