"""The Vision Transformer on the reversible stack: patches in, one label for an image out."""

from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from reformer.config import ReformerConfig
from reformer.layers.linear import dense
from reformer.layers.patches import PatchEmbeddings
from reformer.layers.stack import Observer
from reformer.models.heads import label_sums
from reformer.models.language import Evaluated
from reformer.models.trunk import POOLINGS, Rotations, Streams, Trunk
from reformer.ops.dropout import dropout
from reformer.ops.losses import check_targets_exist, weigh, weight_of, widen
from reformer.ops.patches import ORDERS, Grid, cut, visiting_order
from reformer.sharding import constrain

Images = Num[Array | np.ndarray, "batch height width 3"]  # uint8, or floats from -1 to 1


class ReformerViT(Trunk):
    """Classifies images. With `attention_pattern=('full',)` it is the ViT on reversible layers.

    Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv 2010.11929; mean pooling as in Beyer, Zhai,
    Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580.

    Attributes:
      num_labels: how many there are.
      image_size: pixels of a side of the square images.
      patch_size: pixels of a side of a patch.
      pooling: what the head sees: 'mean' of all patches, or 'first', a class token that stands before them.
      patch_order: 'rows', or 'hilbert' for layers that see a part of the sequence, see `ops.patches.visiting_order`.
    """

    num_labels: int
    image_size: int = 64
    patch_size: int = 8
    pooling: str = "mean"
    patch_order: str = "rows"

    def setup(self):
        """Declares the parts.

        Raises:
          ValueError: the sizes do not fit, a line for each reason.
        """
        found = problems(self.config, self.image_size, self.patch_size, self.pooling, self.patch_order)
        if lines := list(found):
            raise ValueError("\n".join(lines))
        super().setup()
        self.head = dense(self.config, self.num_labels)

    def make_embeddings(self) -> nn.Module:
        """One vector for each patch."""
        return PatchEmbeddings(self.config, self._grid, self.patch_order, self._has_class_token)

    def example(self) -> Array:
        """A black patch."""
        return jnp.zeros((1, 1, 3 * self.patch_size**2))

    def create_head(self, hidden: Float[Array, "batch length hidden"]) -> None:
        """Visits the parameters of the head."""
        self.head(hidden)

    def __call__(
        self,
        images: Images,
        *,
        mask: Bool[Array, "batch patches"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch labels"]:
        """Computes the logits of every label.

        Args:
          images: uint8, or floats from -1 to 1, of `image_size` pixels each way.
          mask: True = real patch, False = padding of the image, row by row; None = all are real.
          rotations: for every LSH layer in depth order; None = drawn from the rng named 'hash'.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.

        Returns:
          Logits, in at least float32.

        Raises:
          ValueError: images of another size, or rotations are wrong or missing.
        """
        patches, mask = self._sequence(images, mask)
        streams, seed = self.run(patches, mask, rotations, deterministic)
        return self._logits(streams, mask, seed)

    def loss(
        self,
        images: Images,
        targets: Int[Array, " batch"],
        *,
        weights: Float[Array, " batch"] | None = None,
        mask: Bool[Array, "batch patches"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Computes the weighted cross-entropy.

        Args:
          images: as in `__call__`.
          targets: the labels, each below `num_labels`. Another one is an error; within `jit`, where its value is not
            known, both sums are NaN.
          weights: of the images; None = 1. The target of one of weight 0 may be any integer.
          mask: as in `__call__`.
          rotations: as in `__call__`.
          deterministic: as in `__call__`.

        Returns:
          Sum of weighted nats, and sum of weights; (0, 0) for zero weights.

        Raises:
          ValueError: as in `__call__`.
        """
        check_targets_exist(targets, weights, self.num_labels)
        logits = self(images, mask=mask, rotations=rotations, deterministic=deterministic)
        nats, _, weight = label_sums(logits, targets, weights, self.config.label_smoothing)
        return nats, weight

    def score(
        self,
        images: Images,
        targets: Int[Array, " batch"],
        *,
        weights: Float[Array, " batch"] | None = None,
        mask: Bool[Array, "batch patches"] | None = None,
        rotations: Rotations | None = None,
        look: Observer | None = None,
    ) -> Evaluated:
        """The loss without dropout, and how many targets have the largest logit or one of the five largest.

        Args:
          images: as in `__call__`.
          targets: as in `loss`.
          weights: as in `loss`.
          mask: as in `__call__`.
          rotations: as in `__call__`.
          look: as in `observe`; None = nobody looks.

        Raises:
          ValueError: as in `__call__`.
        """
        check_targets_exist(targets, weights, self.num_labels)
        patches, mask = self._sequence(images, mask)
        streams, seen = self.observe(patches, look, mask=mask, rotations=rotations)
        logits = self._logits(streams, mask, None)
        nats, right, weight = label_sums(logits, targets, weights)
        near = weight_of(_rank(logits, targets) < 5, weigh(targets, weights, self.num_labels, logits.dtype))
        return Evaluated(nats, right, weight, {"top_5_accuracy": (near, weight)}, seen)

    @property
    def _grid(self) -> Grid:
        return (self.image_size // self.patch_size,) * 2

    @property
    def _has_class_token(self) -> bool:
        return self.pooling == "first"

    def _sequence(self, images, mask) -> tuple[Array, Bool[Array, "batch length"] | None]:
        """The patches in their order, behind a slot for the class token, and which of them are real."""
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"images of shape {images.shape} are not [batch, {self.image_size}, {self.image_size}, 3]. Resize "
                "them, or make a model with another image_size."
            )
        patches = cut(jnp.asarray(images), self.patch_size, self.patch_order)
        if mask is not None:
            mask = jnp.take(mask, visiting_order(self._grid, self.patch_order), axis=1)
        if self._has_class_token:
            patches = jnp.pad(patches, [(0, 0), (1, 0), (0, 0)])
            mask = None if mask is None else jnp.pad(mask, [(0, 0), (1, 0)], constant_values=True)
        return patches, mask

    def _logits(self, streams: Streams, mask, seed) -> Float[Array, "batch labels"]:
        """LayerNorm of the two streams side by side, pooling, dropout, and the head."""
        pooled = self.pool(streams, mask, self.pooling)
        if seed is not None:
            pooled = dropout(pooled, self.config.dropout_rate, seed, jnp.arange(pooled.shape[0]))
        return widen(constrain(self.head(pooled), "act_batch", "act_vocab"))


def problems(config: ReformerConfig, image_size: int, patch_size: int, pooling: str, patch_order: str) -> Iterator[str]:
    """Yields a sentence for each thing that keeps a config from being that of a `ReformerViT`."""
    for name, value, allowed in (("pooling", pooling, POOLINGS), ("patch_order", patch_order, ORDERS)):
        if value not in allowed:
            yield f"{name}={value!r} must be one of {', '.join(allowed)}."
    if config.causal:
        yield "causal=True hides from each patch what comes after it. A model of images needs causal=False."
    if image_size % patch_size:
        yield f"image_size={image_size} is not a multiple of patch_size={patch_size}. Change one of the two."
        return
    side, has_class_token = image_size // patch_size, pooling == "first"
    length = side**2 + has_class_token
    if config.max_length != length:
        token = " and the class token of pooling='first'" if has_class_token else ""
        yield (
            f"max_length={config.max_length} must be {length}: images of {image_size}x{image_size} in patches of "
            f"{patch_size}x{patch_size} are {side}x{side} = {side**2} patches{token}. Set max_length={length}, or "
            "change image_size or patch_size."
        )
    shape = (side + has_class_token, side)
    if config.position_embedding == "axial" and config.resolved_axial_shape != shape:
        token = "; the last row is for the class token" if has_class_token else ""
        yield (
            f"axial_shape={config.resolved_axial_shape} must be {shape}, the rows and columns of patches{token}. Set "
            "axial_shape, or position_embedding='learned'."
        )


def _rank(logits: Float[Array, "batch labels"], targets: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """How many labels stand before the target by their logits; of equal ones the first does, as for argmax."""
    labels = jnp.arange(logits.shape[1])[None]
    of_target = jnp.take_along_axis(logits, targets[:, None], axis=1)
    is_before = (logits > of_target) | ((logits == of_target) & (labels < targets[:, None]))
    return jnp.sum(is_before, axis=1)
