"""The ops as functions: torch's names and defaults, and its order of all arguments still in use.

Extras are keyword-only.
"""

from regops.functional.cross_entropy import cross_entropy
from regops.functional.dropout import dropout
from regops.functional.linear_cross_entropy import linear_cross_entropy

__all__ = ["cross_entropy", "dropout", "linear_cross_entropy"]
