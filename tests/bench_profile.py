"""A profile for tests of the benchmarks: as short as can be."""

import torch

from bench.profiles import Profile

QUICK = Profile(
    "quick",
    (torch.float32,),
    1,
    {"cpu": 1 << 20},
    budget_s=0.01,
    min_rounds=3,
    examples={},
    scaling=False,
)
