"""A bidirectional Reformer that predicts hidden bytes of the Python standard library's own source files.

Command:  python train.py --config=configs/masked.py --workdir=runs/masked
Hardware: 2 cores of an AMD EPYC, three runs at once
Time:     `tiny`, 11,711 steps: about 8 minutes; the default was not run
Result:   `tiny` guesses 59 to 63 % of the hidden bytes (three seeds); see docs/electra.md

Other text: --config.data.name=text --config.data.path=FILE_OR_FOLDER. What was learned is where configs/classify.py may
start from: --config.training.init_from=runs/masked.
Presets: `tiny` is a smaller model that trains in a few minutes.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' or 'tiny'."""
    base.check_preset(preset, ["tiny"])
    config = base.get_config()
    config.task.update(name="masked", mask_rate=0.15)
    config.data.update(name="stdlib", valid_fraction=0.1, test_fraction=0.1)
    config.model.update(
        causal=False,
        attention_pattern=("local", "lsh"),
        max_length=256,
        num_layers=4,
        embed_dim=128,
        mlp_dim=512,
        num_heads=2,
        head_dim=64,
        num_hashes=2,
        local_chunk_length=16,
        local_num_chunks_after=1,
        lsh_chunk_length=32,
        lsh_num_chunks_after=1,
        position_embedding="sinusoidal",  # neighbours are found sooner than with learned positions
    )
    config.optimizer.update(name="adamw", schedule="cosine", learning_rate=0.002, warmup_steps=200, clip_norm=1.0)
    config.training.update(num_steps=10_000, batch_size=16, log_every_steps=50)
    config.evaluation.update(every_steps=1000, batch_size=32, max_examples=512, num_hash_seeds=3)
    config.checkpoint.every_steps = 500
    if preset == "tiny":
        config.model.update(max_length=128, num_layers=2, embed_dim=64, mlp_dim=128, head_dim=32, num_hashes=1)
        config.training.update(num_steps=1000, batch_size=8)
        config.optimizer.warmup_steps = 50
        config.evaluation.every_steps = 250
        config.checkpoint.every_steps = 250
    return config
