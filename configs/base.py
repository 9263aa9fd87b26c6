"""Every field of an experiment with its default. Experiment files start from `get_config` and change what they need."""

import dataclasses
import typing
from collections.abc import Iterable

from ml_collections import ConfigDict, config_dict

from reformer.config import ReformerConfig


def get_config() -> ConfigDict:
    """Returns the defaults of every group."""
    config = ConfigDict()
    config.seed = 0  # of the parameters, the training examples, the dropout masks and the training hashes
    config.task = task_group()
    config.model = model_group()
    config.data = data_group()
    config.optimizer = optimizer_group()
    config.training = training_group()
    config.evaluation = evaluation_group()
    config.checkpoint = checkpoint_group()
    config.sharding = sharding_group()
    return config.lock()


def model_group() -> ConfigDict:
    """Returns the fields of `ReformerConfig`, which holds their defaults and explains each."""
    group = ConfigDict()
    for field in dataclasses.fields(ReformerConfig):
        may_be_none = type(None) in typing.get_args(field.type)
        group[field.name] = config_dict.placeholder(object) if may_be_none else field.default
        if may_be_none and field.default is not None:
            group[field.name] = field.default
    return group


def task_group() -> ConfigDict:
    """Returns the fields that say what is learned."""
    group = ConfigDict()
    # 'language': each token from those before it | 'masked': hidden tokens from all others |
    # 'electra': which tokens a smaller masked model made up | 'classification': the label of a whole example |
    # 'vision': the label of an image | 'translation': a text from another one
    group.name = "language"
    group.mask_rate = 0.15  # of 'masked' and 'electra': share of the tokens that are hidden
    group.generator_scale = 0.25  # electra: widths of the generator relative to the discriminator's
    group.share = "embeddings"  # electra: what both use; 'embeddings' | 'all', with generator_scale=1.0 | 'none'
    group.discriminator_weight = 50.0  # electra: of the discriminator's loss, beside 1 for the generator's
    group.temperature = 1.0  # electra: the generator's logits are divided by it before a token is drawn
    group.num_labels = 20  # of 'classification' and 'vision'; the data may have fewer
    group.pooling = "mean"  # of both: what the head sees, the 'first' token (of images: one of its own) or the 'mean'
    group.image_size = 64  # vision: pixels of a side
    group.patch_size = 8  # vision: pixels of a side of a patch, which is a token; model.max_length follows
    group.patch_order = "rows"  # vision: 'rows' | 'hilbert': along a curve, so that windows of it are squares
    group.source_length = config_dict.placeholder(object)  # translation: tokens of a source; None = data.length
    group.share_embeddings = False  # translation: source and target have the same embeddings
    return group


def data_group() -> ConfigDict:
    """Returns the fields that say what is read."""
    group = ConfigDict()
    # 'stdlib': Python's own source files | 'enwik8' | 'text': any file or folder | 'imagenet64': the original tars |
    # 'images': any folder, or an .npz | 'duplication': the made-up task of the paper | 'packages': windows of text
    # that are labelled with their folder, of the standard library or of any folder of folders | 'labelled_images': a
    # folder with one sub-folder for each label, or an .npz | 'digits': 1,797 written digits of 8x8 pixels |
    # 'pairs': two text files, line by line translations | 'wmt14_ende': the original archives |
    # 'recall': keys and values, made up as it goes | 'listops': nested lists of digits, likewise
    group.name = "stdlib"
    # File or folder of 'text', 'packages' and images; a local copy of enwik8, imagenet64, wmt14_ende; of 'pairs' what
    # the names of the files begin with, up to '.train.en'; '' otherwise.
    group.path = ""
    group.tokens = "bytes"  # of text: 'bytes' | 'subwords', a SentencePiece model or a tokenizer.json; see `subwords`
    group.pack_documents = False  # of text: windows hold whole documents (files, JSON lines), as many as fit, if short
    group.separate_documents = False  # of text: tokens attend within their document only
    group.text_field = ""  # of 'text': the field of JSON lines that is a document; '' = files are plain text
    group.cache_dir = ""  # where prepared data is kept; '' = ~/.cache/reformer
    group.valid_fraction = 0.05  # share of the files (or of the end of a single file) held out for validation
    group.test_fraction = 0.05  # the same for the test split; enwik8 always has 90, 5 and 5 million bytes
    group.repeat_distance = 128  # text: `repeats` are bytes whose last 8 last occurred more than so many bytes back
    group.length = config_dict.placeholder(object)  # tokens per example; None = model.max_length
    group.skip_bad_images = False  # leave unreadable images and those of another size out, instead of refusing them
    group.random_flip = False  # labelled images: mirror every second one to train on
    group.crop_padding = 0  # labelled images: move those to train on by up to so many pixels each way
    group.num_symbols = 127  # of 'duplication' and 'recall'
    group.examples_per_label = 50  # of 'packages': windows of each folder to train on
    group.source_language = "en"  # of 'pairs' and 'wmt14_ende': what the names of the files end with
    group.target_language = "de"
    # So many are learned: of 'pairs' and 'wmt14_ende' for both languages together, and model.vocab_size is the same; of
    # text, and model.vocab_size is 3 more.
    group.num_subwords = 8000
    group.subwords = ""  # file of a vocabulary, such as subwords.model in the workdir of a run; '' = learn it
    group.join = 1  # of 'pairs' and 'wmt14_ende': so many pairs, or as many as fit, make a document
    return group


def optimizer_group() -> ConfigDict:
    """Returns the fields of the update rule. The steps t of a schedule count from 1."""
    group = ConfigDict()
    group.name = "adafactor"  # 'adafactor' | 'adamw'
    group.schedule = "rsqrt"  # 'rsqrt' | 'cosine' | 'constant', each with a linear warmup
    group.learning_rate = 1.0  # highest rate of 'cosine' and 'constant'; 'rsqrt' peaks at this / sqrt(warmup_steps)
    group.warmup_steps = 1000  # the rate is multiplied by min(1, t / warmup_steps); 0 = no warmup
    group.clip_norm = config_dict.placeholder(object)  # largest global norm of the gradient; None = no clipping
    group.weight_decay = 0.0  # times the rate, for kernels and embeddings only
    group.b1 = 0.9  # adamw: decay of the first moment
    group.b2 = 0.98  # adamw: decay of the second moment
    group.epsilon = 1e-9  # adamw: added to the root of the second moment
    group.factored_decay = 0.8  # adafactor: the second moment decays by 1 - t ** -factored_decay
    group.min_factored_dim = 32  # adafactor: second moments are factored if two axes are at least this long
    group.update_clip = 1.0  # adafactor: largest root mean square of a parameter's update, before the rate
    return group


def training_group() -> ConfigDict:
    """Returns the fields of the step loop."""
    group = ConfigDict()
    group.num_steps = 1000  # updates in total
    group.batch_size = 8  # examples per update, over all devices and micro-batches
    group.accumulation_steps = 1  # micro-batches per update, one after the other: less memory, same result
    group.log_every_steps = 10  # steps between two records of the training loss
    # Who gets the records beside metrics.jsonl: 'tensorboard', 'wandb', 'mlflow', or MODULE:NAME of what takes a
    # `reformer.training.writers.Opening` and returns a `Writer`.
    group.writers = ("tensorboard",)
    # Workdir of a run, or folder of a Hugging Face model or its name on the hub, whose parameters are taken where the
    # shape is the same and the path, or in the stack the depth; 'DIR:PART' = those of a part, such as the
    # discriminator; '' = all random.
    group.init_from = ""
    # Regular expressions that match whole names of a parameter's path: what they match is not trained, such as
    # ('embeddings', 'stack').
    group.frozen = ()
    group.max_skipped_updates = 0  # so many updates in a row whose loss or gradient is not finite are left out
    group.stall_seconds = config_dict.placeholder(object)  # a run without any progress for so long ends; None = never
    group.stall_seconds = 1800.0
    return group


def evaluation_group() -> ConfigDict:
    """Returns the fields of the evaluation."""
    group = ConfigDict()
    group.every_steps = 250  # steps between two evaluations during training; the last step is always evaluated
    group.batch_size = 8  # examples per evaluation step, over all devices
    group.max_examples = config_dict.placeholder(object)  # only so many, evenly spread; None = the whole split
    group.hash_seed = 0  # of the LSH rotations, the same for every example
    group.num_hash_seeds = 3  # at the end: seeds hash_seed, hash_seed + 1, ... tell how far other hashes differ
    return group


def checkpoint_group() -> ConfigDict:
    """Returns the fields of the checkpoints. The best evaluated one is always kept, and every evaluation saves one."""
    group = ConfigDict()
    group.every_steps = 250  # steps between two checkpoints
    group.keep_latest = 2  # latest checkpoints that are kept beside the best
    group.keep_every_steps = config_dict.placeholder(object)  # also keep those of every so many steps; None = no
    return group


def sharding_group() -> ConfigDict:
    """Returns the sizes of the device mesh; one of them may be -1, the devices that remain."""
    group = ConfigDict()
    group.data = -1  # copies of the model, each with its part of the batch
    group.fsdp = 1  # parts of the batch that also divide the parameters among them
    group.tensor = 1  # parts of the heads and of the feed-forward layers
    group.split_length = False  # the `tensor` devices hold parts of the length instead: for few, very long sequences
    return group


def check_preset(preset: str, presets: Iterable[str]) -> None:
    """Raises a ValueError with the list of `presets` unless `preset` is one of them or empty."""
    if preset and preset not in presets:
        raise ValueError(f"preset={preset!r} does not exist. Choose one of {', '.join(presets)}, or none.")
