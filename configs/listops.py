"""ListOps of the Long Range Arena: nested lists of digits under MIN, MAX, MED and SM; ten classes, 500 to 2,000 tokens.

Command:  python train.py --config=configs/listops.py:small --workdir=runs/listops
Hardware: one core of an Intel Xeon with AVX-512, JAX 0.10.2, commit dd640a4
Time:     about 20 minutes
Result:   14.6 % of 500 expressions, as good as guessing: 8,000 expressions teach nothing yet

The public table (Tay et al. 2020, arXiv 2011.04006, Table 1) has the Reformer at 37.27 %, the Transformer at 36.37 %,
after 5,000 steps of 32 expressions. Expressions are made as it goes, by the published rules (reformer/data/listops.py).

Presets: `arena` (the default) has the size of the public table's models, 6 layers of width 512; `small` has 2 layers of
width 128, for two CPU cores; `tiny` is `small` on expressions of up to 128 tokens, a minute.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'arena'), 'arena', 'small' or 'tiny'."""
    base.check_preset(preset, ["arena", "small", "tiny"])
    config = base.get_config()
    config.task.update(name="classification", num_labels=10, pooling="mean")
    config.data.name = "listops"
    config.model.update(
        vocab_size=16,
        max_length=2000,
        causal=False,
        attention_pattern=("local", "lsh"),
        num_layers=6,
        embed_dim=512,
        mlp_dim=1024,
        num_heads=8,
        head_dim=64,
        num_hashes=2,
        lsh_num_chunks_after=1,
        local_num_chunks_after=1,
        position_embedding="learned",
        dropout_rate=0.1,
    )
    config.optimizer.update(name="adamw", schedule="rsqrt", learning_rate=0.03, warmup_steps=1000, weight_decay=0.1)
    config.training.update(num_steps=5000, batch_size=32, log_every_steps=20)
    config.evaluation.update(every_steps=500, batch_size=32)
    config.checkpoint.every_steps = 500
    if preset in ("small", "tiny"):
        config.model.update(num_layers=2, embed_dim=128, mlp_dim=256, num_heads=2, dropout_rate=0.0)
        config.optimizer.update(
            schedule="cosine", learning_rate=0.001, warmup_steps=50, weight_decay=0.0, clip_norm=1.0
        )
        config.training.update(num_steps=1000, batch_size=8)
        config.evaluation.update(every_steps=250, batch_size=20, max_examples=500, num_hash_seeds=1)
        config.checkpoint.every_steps = 250
    if preset == "tiny":
        config.model.update(max_length=128, lsh_chunk_length=16, local_chunk_length=16)
        config.training.update(num_steps=300, batch_size=16)
        config.evaluation.every_steps = 150
    return config
