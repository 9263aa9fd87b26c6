"""Writes text or paints pictures: python generate.py --workdir=DIR --prompt="text" --num_tokens=500."""

from reformer.commands.generate import run

if __name__ == "__main__":
    run()
