"""The Vision Transformer on the reversible stack: labels of whole images.

Command:  python train.py --config=configs/vit.py:digits --workdir=runs/digits
          python train.py --config=configs/vit.py:patch4 --workdir=runs/patch4 --config.data.path=PATH
          (PATH is a folder with one sub-folder of 64x64 images for each label, or an .npz with labels; then also
          --config.task.num_labels=N, which is 200 here)
          python benchmarks/vision.py --config.data.path=PATH trains and measures all of them beside each other
Hardware: 2 cores of an AMD EPYC
Time:     `digits` 436 steps: 40 s; `tiny` 1,962 steps: 50 to 63 s (benchmarks/vision.py --minutes 0.7; the presets
          have other numbers of steps)
Result:   89.7 % and 98.4 % of the digits (means of three seeds); see docs/vision.md. The photographs: step times only

Presets:
  patch8, patch4, patch2, patch1  local-LSH layers on 64, 256, 1,024 and 4,096 patches of a 64x64 image, in the order of
               a Hilbert curve. The default is patch4.
  digits       local-LSH layers on the 64 pixels of handwritten digits, which scikit-learn brings along.
  tiny         the same on patches of 2x2 pixels: a laptop CPU.
  Any of these with `_full` behind its name, such as patch8_full, has full attention: the ViT.
"""

from ml_collections import ConfigDict

from reformer.configs import base

_PHOTOGRAPHS = {"patch8": 8, "patch4": 4, "patch2": 2, "patch1": 1}  # pixels of a patch's side
_DIGITS = {"digits": 1, "tiny": 2}
_CHUNK_LENGTHS = {8: 16, 4: 32, 2: 64, 1: 64}
_FULL = "_full"


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is one of those above, or '' (as 'patch4')."""
    names = [*_PHOTOGRAPHS, *_DIGITS]
    base.check_preset(preset, [*names, *(name + _FULL for name in names)])
    name = preset.removesuffix(_FULL) or "patch4"
    config = base.get_config()
    config.task.name = "vision"
    config.model.update(
        causal=False,
        vocab_size=1,  # images have no ids
        attention_pattern=("local", "lsh"),
        num_hashes=2,
        local_num_chunks_after=1,
        lsh_num_chunks_after=1,
        position_scale=1.0,  # as large as what is seen: at 0.25 `tiny` gets 77 % right instead of 91 %
    )
    config.optimizer.update(
        name="adamw", schedule="cosine", learning_rate=0.001, weight_decay=0.05, b2=0.999, epsilon=1e-8, clip_norm=1.0
    )
    if name in _DIGITS:
        _digits(config, _DIGITS[name])
    else:
        _photographs(config, _PHOTOGRAPHS[name])
    if preset.endswith(_FULL):
        config.model.attention_pattern = ("full",)
        config.task.patch_order = "rows"  # makes no difference, and needs no gather
    return config


def _photographs(config: ConfigDict, patch_size: int) -> None:
    config.task.update(num_labels=200, image_size=64, patch_size=patch_size, patch_order="hilbert")
    config.data.update(name="labelled_images", random_flip=True, crop_padding=8)
    config.model.update(
        max_length=(64 // patch_size) ** 2,
        num_layers=4,
        embed_dim=128,
        axial_dims=(64, 64),
        mlp_dim=512,
        num_heads=4,
        head_dim=32,
        local_chunk_length=_CHUNK_LENGTHS[patch_size],
        lsh_chunk_length=_CHUNK_LENGTHS[patch_size],
        dropout_rate=0.1,
    )
    config.optimizer.warmup_steps = 200
    config.training.update(num_steps=2500, batch_size=64, log_every_steps=25)
    config.evaluation.update(every_steps=250, batch_size=50, num_hash_seeds=3)
    config.checkpoint.every_steps = 250


def _digits(config: ConfigDict, patch_size: int) -> None:
    config.task.update(num_labels=10, image_size=8, patch_size=patch_size, patch_order="hilbert")
    config.data.update(name="digits", valid_fraction=0.2, test_fraction=0.2, crop_padding=1)
    config.model.update(
        max_length=(8 // patch_size) ** 2,
        num_layers=2,
        embed_dim=64,
        axial_dims=(32, 32),
        mlp_dim=128,
        num_heads=2,
        head_dim=32,
        local_chunk_length=8 // patch_size,
        lsh_chunk_length=8 // patch_size,
        dropout_rate=0.1,
    )
    config.optimizer.update(learning_rate=0.01, warmup_steps=20)
    config.training.update(num_steps=1000 if patch_size == 1 else 300, batch_size=64, log_every_steps=20)
    config.evaluation.update(every_steps=100, batch_size=120, num_hash_seeds=3)
    config.checkpoint.every_steps = 100
