"""Trains a model: python train.py --config=configs/NAME.py[:preset] --workdir=DIR [--config.group.field=value]."""

from reformer.commands.train import run

if __name__ == "__main__":
    run()
