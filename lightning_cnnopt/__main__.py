"""The command ``cnnopt``. What needs no torch is answered here, before torch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lightning_cnnopt._version import __version__

USAGE = """\
usage: cnnopt [--debug] {fit,validate,test,predict,profile,lr_find,show} [options]

Trains and measures image classifiers with PyTorch Lightning; techniques are named in YAML.

commands:
  fit        train:              cnnopt fit --config configs/quickstart.yaml
  validate   measure on the validation split of a checkpoint
  test       measure on the test split:  cnnopt test -c RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
  predict    write a CSV of class names and probabilities
  profile    measure each layer: cnnopt profile -c configs/quickstart.yaml
  lr_find    suggest learning rates: cnnopt lr_find -c configs/quickstart.yaml --max_lr 1
  show       draw what training sees:    cnnopt show -c configs/quickstart.yaml

options of every command:
  -c, --config FILE      YAML; may be given several times, later files win
  --print_config         print the whole configuration and leave
  --tta flip             validate, test, predict: the mean over the image and its mirror image
  --ckpt_path FILE       fit: resume from it; the others: measure it
  --trainer.FLAG VALUE   any flag of Lightning's Trainer
  --model.ARG, --data.ARG and `cnnopt COMMAND --help` for everything else

options:
  -h, --help     this text
  --version      print the version
  --debug        show tracebacks
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for what the user can mend, 1 for anything else.

    Args:
        arguments: Without the program's name; by default those of the process.

    Example:
        >>> main(["--version"])
        cnnopt ...
        0
    """
    if arguments is None:
        arguments = sys.argv[1:]
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` has it, so that a config may name a class of a file that lies here
    arguments = list(arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"cnnopt {__version__}")
        return 0
    from lightning_cnnopt.cli import run

    return run(arguments, debug)


if __name__ == "__main__":
    sys.exit(main())
