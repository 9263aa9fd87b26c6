"""Evaluates a checkpoint: python eval.py --workdir=DIR [--split=test] [--config.group.field=value]."""

from reformer.commands.evaluate import run

if __name__ == "__main__":
    run()
