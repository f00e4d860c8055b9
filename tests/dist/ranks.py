"""What torchrun starts in the tests: each argument is a run file, trained one after the other."""

import sys

import torch

from culm.dist.launch import process_group
from culm.run import train
from culm.settings import read_run

torch.set_num_threads(1)
with process_group("cpu"):
    for argument in sys.argv[1:]:
        name, *settings = argument.split(",")
        train(read_run(name, settings)[0])
