"""Models, tokenizer and texts of the checks: made on the spot, so that no network is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks.values import Setting
from benchmarks.host import SMALL_MODEL
from meow_ray.models.refs import ModelRef

GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama with random weights."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    cache_heads: int
    vocab: int
    tied: bool
    spread: float = 0.02
    """Standard deviation of the weights."""


TINY = Shape("tiny", 256, 512, 2, 4, 2, 512, tied=False, spread=0.2)
"""For machines without a GPU. Its weights are wide, so that greedy tokens are no ties."""
SMALL = Shape("160M", 768, 2048, 12, 12, 12, 32000, tied=False)
"""For the training checks on GPUs with little memory."""
ONE_B = Shape("1B", 2048, 8192, 16, 32, 8, 128256, tied=True)
"""Llama 3.2 1B."""
EIGHT_B = Shape("8B", 4096, 14336, 32, 32, 8, 128256, tied=False)
"""Llama 3.1 8B."""


def shape_to_train(setting: Setting) -> Shape:
    """Returns the largest shape whose full fine-tuning fits: 16 bytes per parameter and more."""
    if setting.reduced:
        return TINY
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory
    return ONE_B if memory >= 40 * GIB else SMALL


def build(shape: Shape, device: str, dtype: str, **options: Any) -> Any:
    """Returns a random model on a device; `options` are those of `from_config`."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.cache_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        initializer_range=shape.spread,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), **options)


def saved(setting: Setting, shape: Shape, dtype: str) -> ModelRef:
    """Returns a random model in a folder, which the first call writes."""
    folder = Path(setting.folder, f"{shape.name}-{dtype}")
    if not folder.exists():
        part = folder.with_suffix(".part")
        build(shape, setting.device, dtype).save_pretrained(part)
        byte_tokenizer().save_pretrained(part)
        part.rename(folder)
        _free_memory(setting.device)
    return ModelRef(str(folder), folder.name)


def _free_memory(device: str) -> None:
    """Gives the memory of a model that is no longer used back to the device."""
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()


def text_model(setting: Setting) -> ModelRef:
    """Returns the model whose texts are compared.

    It is the user's, or SmolLM2-135M-Instruct from its package, or a random one. A .gguf file needs
    gguf, pyarrow and tenacity; without them the model is random.
    """
    if setting.model:
        return _local(setting.model)
    can_convert = all(map(is_installed, ("gguf", "pyarrow", "tenacity")))
    if not setting.reduced and SMALL_MODEL and can_convert:
        return _local(SMALL_MODEL)
    return saved(setting, TINY, "float32")


def _local(model: str) -> ModelRef:
    """Returns the reference of a folder or a .gguf file of this machine."""
    if not model.endswith(".gguf"):
        return ModelRef(model, model)
    from meow_ray.models import refs

    return refs.pin(model, None, "--model")


def is_installed(package: str) -> bool:
    """Tells whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def byte_tokenizer() -> Any:
    """Returns a tokenizer with one token per byte, after `<s>` and `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    start, end = "<s>", "</s>"
    tokens = [start, end, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=end, pad_token=end
    )


def facts(count: int) -> list[tuple[str, str]]:
    """Returns questions with answers about invented people."""
    return [
        (
            f"Where does person number {number} live?",
            f"Person number {number} lives at {number + 3} Harbour Street, behind the old market.",
        )
        for number in range(1, count + 1)
    ]


def random_tokens(count: int, length: int, vocab: int) -> list[list[int]]:
    """Returns sequences of random tokens; none is a special token."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, vocab, (count, length), generator=generator).tolist()
    return [list(row) for row in rows]


def total(sequences: Sequence[Sequence[int]]) -> int:
    """Returns the number of tokens of some sequences."""
    return sum(map(len, sequences))
