"""A tiny SentencePiece model, trained on a text that Python comes with."""

import codecs
import contextlib
import io
import pathlib

import sentencepiece

VOCAB_SIZE = 80


def train(path: pathlib.Path) -> pathlib.Path:
    """Train the model into a file; its ids begin with padding, the unknown and the end of a text."""
    with contextlib.redirect_stdout(io.StringIO()):  # the module prints itself
        import this
    sentences = codecs.decode(this.s, "rot13").splitlines()
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            vocab_size=VOCAB_SIZE,
            pad_id=0,
            unk_id=1,
            eos_id=2,
            bos_id=-1,
            normalization_rule_name="identity",
            minloglevel=2,
        )
    return path
