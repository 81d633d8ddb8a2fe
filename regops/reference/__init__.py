"""The oracle of each op: the same names and signatures in plain PyTorch, readable, slow."""

from regops.reference.cross_entropy import cross_entropy
from regops.reference.dropout import dropout
from regops.reference.linear_cross_entropy import linear_cross_entropy

__all__ = ["cross_entropy", "dropout", "linear_cross_entropy"]
