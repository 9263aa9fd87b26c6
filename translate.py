"""Translates texts: python translate.py --workdir=DIR --split=test, or --input=FILE."""

from reformer.commands.translate import run

if __name__ == "__main__":
    run()
