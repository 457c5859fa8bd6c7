"""Conversion between texts and token ids: prompts, ends of sentences, and one text under two tokenizers.

Tokenizers and texts come in; ids, and the bytes of each, come out. No network is involved.
Start at :mod:`~models.texts.prompt_encoding`.
"""
