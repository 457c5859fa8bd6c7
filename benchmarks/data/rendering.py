"""Render a conversation, by a prompt template, as the token ids that a model reads before it responds."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from benchmarks.data.preference_formats import Conversation, Turn
from benchmarks.data.records import RowFault
from benchmarks.data.templates import CHAT, TEMPLATES
from models.texts.prompt_encoding import encode, encode_chats


def render(template: str, prompt: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt, up to where the response begins.

    Raises:
        RowFault: a conversation of several turns in a template for one.
        ValueError: ``chat`` with a tokenizer that has no chat template, or one that refuses the conversation.
    """
    if template == CHAT:
        return encode_chats(tokenizer, [[{"role": turn.role, "content": turn.content} for turn in prompt]])[0]
    if len(prompt) != 1:
        raise RowFault("several turns, but the template takes only one")
    before, after = TEMPLATES.get(template, template).split("{prompt}")
    return encode(tokenizer, [before + prompt[0].content.strip() + after])[0]


def fitted(template: str, prompt: Conversation, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Conversation:
    """The prompt, with the end of its last message cut off so that it renders to at most ``max_tokens`` tokens.

    Raises:
        RowFault: not even an empty message would fit.
    """
    content, low, high = prompt[-1].content, 0, len(prompt[-1].content)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        if len(render(template, _cut(prompt, content[:middle]), tokenizer)) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    if not content[:low].strip():
        raise RowFault(f"'prompt' leaves no room within {max_tokens} tokens")
    return _cut(prompt, content[:low])


def response_ids(template: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a response to a rendered prompt, EOS included: one space where the template ends without one."""
    text = text.strip()
    ends_open = template != CHAT and not TEMPLATES.get(template, template)[-1].isspace()
    ids: Sequence[int] = tokenizer((" " if ends_open else "") + text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def _cut(prompt: Conversation, content: str) -> Conversation:
    return (*prompt[:-1], Turn(role=prompt[-1].role, content=content))
