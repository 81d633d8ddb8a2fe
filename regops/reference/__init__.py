"""The oracle of each op: the same names and signatures in plain PyTorch, readable, slow."""

from regops.reference.cross_entropy import cross_entropy
from regops.reference.dropout import dropout

__all__ = ["cross_entropy", "dropout"]
