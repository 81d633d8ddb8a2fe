"""The ops as functions: torch's names, argument order and defaults; extras are keyword-only."""

from regops.functional.cross_entropy import cross_entropy
from regops.functional.dropout import dropout

__all__ = ["cross_entropy", "dropout"]
