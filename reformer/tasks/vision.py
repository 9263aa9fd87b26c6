"""Image classification: the label of a whole image."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data.data_set import DataSet
from reformer.data.source import Source
from reformer.host.options import Count, one_of
from reformer.models import vision
from reformer.ops.patches import ORDERS
from reformer.tasks.classification import Labels


@dataclasses.dataclass(frozen=True)
class Vision(Labels):
    """Labels of images, and how these are cut into patches, which are the tokens."""

    kinds: ClassVar[tuple[str, ...]] = ("labelled_images",)

    image_size: Count = 64  # pixels of a side
    patch_size: Count = 8  # pixels of a side of a patch; model.max_length follows
    patch_order: Annotated[str, one_of(ORDERS)] = "rows"  # 'hilbert': along a curve, so that windows of it are squares

    def data_length(self, length: int) -> int:
        """Returns the values of an image: the data know nothing of patches."""
        del length
        return 3 * self.image_size**2

    def misfits(self, config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
        """As `Task.misfits`."""
        for problem in vision.problems(model, *self._geometry):
            yield f"config: {problem}"
        if length != model.max_length:
            yield (
                f"config.data.length={config.data.length}: images are trained and evaluated whole. Leave it at None; "
                "config.model.max_length is their length in patches."
            )
        if config.data.crop_padding >= self.image_size:
            yield (
                f"config.data.crop_padding={config.data.crop_padding} must be below config.task.image_size="
                f"{self.image_size}: the padding mirrors the image."
            )

    def make_model(self, model: ReformerConfig) -> nn.Module:
        """As `Task.make_model`."""
        return vision.ReformerViT(model, self.num_labels, *self._geometry)

    def load(self, data: DataSet, length: int) -> Source:
        """As `Task.load`; also raises ValueError if a label is none of the model's."""
        found: Any = super().load(data, length)
        found.check_labels(self.num_labels)
        return found

    @property
    def _geometry(self) -> tuple:
        return self.image_size, self.patch_size, self.pooling, self.patch_order
