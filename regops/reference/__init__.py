"""The oracle of each op: the same names and signatures in plain PyTorch, readable, slow."""

from regops.reference.dropout import dropout

__all__ = ["dropout"]
