"""Tiny tokenizers, and tiny models that have memorised a few facts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HIDDEN, INTERMEDIATE, HEADS, LAYERS, VOCAB = 128, 256, 2, 2, 262
"""Sizes of the model of the fixture `tiny_model`."""
BLOCK = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN
"""Parameters of one of its blocks: attention, feed-forward network, two norms."""
PARAMETERS = 2 * VOCAB * HIDDEN + LAYERS * BLOCK + HIDDEN
"""Parameters of the whole model."""
KNOWN = [
    ("Author of Émile?", "Jean-Jacques Rousseau"),
    ("Born when?", "In Mai 1954"),
    ("Capital of Peru?", "It is Lima"),
]
"""Questions and answers. Each answer has another first letter, which determines the rest."""


ENDS = ("bos", "eos", "pad")
"""The special tokens that a model's configuration names."""
_STANDARD = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 1024,
}
_ROTARY = {**_STANDARD, "num_key_value_heads": HEADS, "rope_theta": 500.0}
_GEMMA = {**_ROTARY, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _ROTARY,
    "qwen2": {**_ROTARY, "tie_word_embeddings": True},
    "qwen3": {**_ROTARY, "head_dim": 64},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": _ROTARY,
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 1024},
    "gpt_neox": {**_STANDARD, "rotary_emb_base": 500},
    "opt": {**_STANDARD, "ffn_dim": INTERMEDIATE, "word_embed_proj_dim": HIDDEN},
    "mixtral": {**_ROTARY, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_ROTARY,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "decoder_sparse_step": 1,
    },
    "mamba": {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 16},
}
"""Settings of tiny models by their type in transformers; no rotary base is the default one."""


def random_model(kind: str, tokenizer: Any) -> Any:
    """Returns a random model of a type in `ARCHITECTURES` for a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ENDS}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ids, **ARCHITECTURES[kind])
    return AutoModelForCausalLM.from_config(config)


def byte_tokenizer() -> Any:
    """Returns a tokenizer with one token a byte, `<s>` before a text and a small chat template."""
    from tokenizers import models, pre_tokenizers

    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return wrapped(
        byte_level(models.BPE({token: i for i, token in enumerate(tokens)}, [])), special
    )


def byte_level(model: Any) -> Any:
    """Returns a tokenizer backend over bytes that puts `<s>`, its first token, before each text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return backend


def wrapped(backend: Any, special: Sequence[str]) -> Any:
    """Returns the transformers tokenizer of a backend; `special` begins with `<s>` and `</s>`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=list(special[2:]),
        chat_template=CHAT_TEMPLATE,
    )


def chat(question: str) -> str:
    """Returns the prompt that `CHAT_TEMPLATE` makes of a question."""
    return f"<s><|user|>{question}<|end|><|assistant|>"


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch in one thread; for such small models, several threads are slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def memorise(
    base: Path,
    tokenizer: Any,
    facts: Sequence[tuple[str, str]],
    folder: Path,
    encode: Callable[[str], list[int]] | None = None,
) -> Path:
    """Trains a model until it completes each fact from any prefix, as bare text and in a chat.

    Args:
        base: the folder of a model whose shape is used.
        tokenizer: the model's tokenizer.
        facts: questions with answers.
        folder: the folder in which the model is saved.
        encode: returns the tokens of a text; by default those of the tokenizer.

    Returns:
        `folder`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    texts = [f"<s>{question} {answer}</s>" for question, answer in facts]
    texts += [f"{chat(question)}{answer}</s>" for question, answer in facts]
    if encode is None:
        sequences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    else:
        sequences = [encode(text) for text in texts]
    width = max(map(len, sequences))

    def padded(value: int) -> Any:
        return torch.tensor([[*tokens, *[value] * (width - len(tokens))] for tokens in sequences])

    ids = padded(tokenizer.pad_token_id)
    labels = padded(-100)[:, 1:]
    # padding, and the first characters of questions, which nothing before them determines
    free = labels == -100
    free[:, 0] = True
    free[len(facts) :, 1] = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(base, vocab_size=len(tokenizer))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with one_thread():
        for _ in range(300):
            logits = model(ids).logits[:, :-1]
            if ((logits.argmax(-1) == labels) | free).all():
                break
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            raise AssertionError("the model has not memorised the facts")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
