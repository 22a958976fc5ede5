"""Fixtures of all tests: a home of their own, a tiny tokenizer, the shared data."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

PROJECT = Path(__file__).parents[1]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

settings.register_profile("meow", deadline=None, max_examples=50)
settings.load_profile("meow")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's caches; only compiled extensions, slow to build, are shared."""
    home = tmp_path_factory.mktemp("home")
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path("~/.cache/torch_extensions").expanduser()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("MEOW_HOME", str(home / "meow"))
        patch.setenv("HF_HOME", str(home / "huggingface"))
        patch.setenv("TORCH_EXTENSIONS_DIR", extensions)
        yield home


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a file of the shared data, or skips the test."""
    folder = Path(os.environ.get("MEOW_SHARED_DATA", PROJECT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"shared data: {path} is absent")
        return path

    return find


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer: one token a byte, `<s>` in front of a text, a small chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
    )
