"""Bactrian turns a base model of the Llama family into a chat assistant, and proves what it did.

The package itself imports nothing: each room is imported by the verb that needs it.
"""

__version__ = "0.1.0"
