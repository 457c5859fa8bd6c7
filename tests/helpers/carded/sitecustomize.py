"""With this folder and the one above it on PYTHONPATH, every Python process begins with a pretended card."""

from pretended_card import PretendedCard

PretendedCard().__enter__()
