"""The ops as functions: torch's names, argument order and defaults; extras are keyword-only."""

from regops.functional.dropout import dropout

__all__ = ["dropout"]
