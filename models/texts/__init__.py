"""Between texts and token ids: prompts, ends of sentences, and one text told to two tokenizers.

Tokenizers and texts come in; ids, and which bytes each stands for, come out. It knows no network.
Start at :mod:`~models.texts.prompt_encoding`.
"""
