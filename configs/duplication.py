"""The duplication task of the paper's Table 2: 0 w 0 w, where the second w can only be known by copying.

Command:  python train.py --config=configs/duplication.py:small --workdir=runs/duplication
          python benchmarks/table2.py                              the whole table
Hardware: `small`: two busy cores of a shared AMD EPYC (JAX 0.10.2); `paper` is not measured yet
Time:     4 to 14 min a model (1,000 steps; it copies after some 300)
Result:   100.0 % of the symbols right with 4 hash rounds; the whole table is in docs/results.md

Presets: `paper` (the default: words of 511 symbols, 150,000 steps, for an accelerator), `small` (words of 63 symbols
and chunks of 16, so that LSH really has to find its keys; minutes on a laptop CPU), `tiny` (words of 15 symbols).
All layers have the shared query-key projection, so that every model can be evaluated under every attention:
--config.model.attention_pattern="('full',)" or --config.model.num_hashes=8.
Source: arXiv 2001.04451, section 5 and Table 2.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '', 'paper', 'small' or 'tiny'."""
    base.check_preset(preset, ["paper", "small", "tiny"])
    config = base.get_config()
    config.data.update(name="duplication", num_symbols=127)
    config.model.update(
        vocab_size=129,
        max_length=1024,
        num_layers=1,
        attention_pattern=("lsh",),
        look_ahead=False,
        share_query_key=True,
        embed_dim=256,
        mlp_dim=256,
        num_heads=4,
        head_dim=64,
        num_hashes=4,
        lsh_chunk_length=32,
        position_embedding="learned",
        position_scale=1.0,  # the task is about places
    )
    config.optimizer.update(name="adamw", schedule="cosine", learning_rate=0.001, warmup_steps=1000, clip_norm=1.0)
    config.training.update(num_steps=150_000, batch_size=64, log_every_steps=100)
    config.evaluation.update(every_steps=5000, batch_size=50)
    config.checkpoint.every_steps = 5000
    if preset in ("small", "tiny"):
        config.model.look_ahead = None
        config.model.update(max_length=128, embed_dim=128, mlp_dim=128, head_dim=32, lsh_chunk_length=16)
        config.optimizer.update(learning_rate=0.003, warmup_steps=200)
        config.training.update(num_steps=1000, batch_size=32)
        config.evaluation.update(every_steps=500, batch_size=100)
        config.checkpoint.every_steps = 500
    if preset == "tiny":
        config.model.update(max_length=32, lsh_chunk_length=8)
        config.training.update(num_steps=500)
        config.evaluation.every_steps = 250
    return config
