"""Write a Llama that is packed as GGUF (SmolLM2, say) as a folder of float32 safetensors, with its tokenizer.

    pip install gguf
    python tools/llama_from_gguf.py FILE.gguf NEW_FOLDER

The folder can be given wherever this project asks for a model: load_policy(NEW_FOLDER), prepare --base NEW_FOLDER.
transformers unpacks the weights; this script copies them into a plain model, without the settings of the quantisation,
and compares what was written with what was read. Quantised weights stay as coarse as they were.

All weights are in memory twice. Nothing that exists is overwritten.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

LEFT_OUT = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
SAMPLE = "It's  1999:\nthe film, Amélie's twin, wasn't bad."


def convert(file: Path, new_folder: Path) -> Path:
    """Write ``new_folder`` (complete, or not at all) and return it.

    Raises:
        FileExistsError: ``new_folder`` exists.
        FileNotFoundError: there is no such file.
        ValueError: no Llama, or model and tokenizer that do not fit each other.
    """
    if new_folder.exists():
        raise FileExistsError(f"{new_folder} exists; name a folder that does not")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = plain_copy(AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32))
    require_fitting(model, tokenizer)
    new_folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=new_folder.parent, prefix=f".{new_folder.name}.") as scratch:
        unfinished = Path(scratch, new_folder.name)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        _require_same(model, tokenizer, unfinished)
        unfinished.rename(new_folder)
    return new_folder


def plain_copy(model: PreTrainedModel) -> LlamaForCausalLM:
    """The same weights in a model whose settings say nothing of GGUF.

    Raises:
        ValueError: the model is no LlamaForCausalLM.
    """
    if not isinstance(model, LlamaForCausalLM):
        raise ValueError(f"the file holds a {type(model).__name__}, and this script reads Llama models only")
    config = copy.deepcopy(model.config)
    for name in LEFT_OUT:
        vars(config).pop(name, None)
    # GGUF stores it as a float32, which has seven digits: 1e-05 comes back as 9.999999747e-06
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        **{name: getattr(config, name) for name in SPECIAL}
    )
    return plain.eval()


def require_fitting(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the tokenizer names other special tokens than the model, has ids that the model does not
    know, has no EOS token, or does not give a text back."""
    for name in SPECIAL:
        if getattr(model.config, name) != getattr(tokenizer, name):
            raise ValueError(
                f"{name} is {getattr(model.config, name)} in the model and {getattr(tokenizer, name)} in the tokenizer"
            )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, with which a response ends")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model knows {model.config.vocab_size}")
    ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if back != SAMPLE:
        raise ValueError(f"the tokenizer does not give a text back: {SAMPLE!r} became {back!r}")


@torch.no_grad()
def _require_same(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise RuntimeError unless the folder gives the same logits, ids and chat template."""
    read = LlamaForCausalLM.from_pretrained(folder).eval()
    other = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(SAMPLE, return_tensors="pt")["input_ids"]
    same = (
        torch.equal(model(ids).logits, read(ids).logits)
        and torch.equal(ids, other(SAMPLE, return_tensors="pt")["input_ids"])
        and tokenizer.chat_template == other.chat_template
    )
    if not same:
        raise RuntimeError("what was written is not what was read; the disk or its memory is faulty")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a file that ends in .gguf")
    parser.add_argument("new_folder", type=Path, help="a folder that does not exist yet")
    chosen = parser.parse_args(argv)
    try:
        print(f"written to {convert(chosen.file, chosen.new_folder)}")
    except (ImportError, OSError, ValueError) as reason:
        parser.error(str(reason))


if __name__ == "__main__":
    main()
