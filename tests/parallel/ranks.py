"""What torchrun starts in the tests: each argument is a run file, trained one after the other."""

import sys

import torch

from culm.parallel.launch import process_group
from culm.run.settings import read_run
from culm.run.train import train

torch.set_num_threads(1)
with process_group("cpu"):
    for argument in sys.argv[1:]:
        name, *settings = argument.split(",")
        train(read_run(name, settings)[0])
