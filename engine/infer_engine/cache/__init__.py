"""The prefix cache: a radix tree per namespace over token runs and the slots that hold their K/V. Pure Python."""

from infer_engine.cache.prefix import Handle, InsertResult, MatchResult, NamespaceUsage, RadixKey
from infer_engine.cache.radix import RadixCache

__all__ = ["Handle", "InsertResult", "MatchResult", "NamespaceUsage", "RadixCache", "RadixKey"]
