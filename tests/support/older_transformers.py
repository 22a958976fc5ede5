"""An environment with transformers 4.45, and the program that runs in it.

`python -m tests.support.older_transformers make KIND FOLDER` writes a tiny model.
`python -m tests.support.older_transformers read FOLDER TEXT` writes what a model computes.
"""

import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
TRANSFORMERS = "transformers==4.45.*"
PEFT = "peft==0.13.*"


@dataclass(frozen=True)
class OlderTransformers:
    """An environment with transformers 4.45 and PEFT 0.13, which reads and writes models."""

    python: Path

    def make(self, kind: str, folder: Path) -> Path:
        """Writes a random model of a type in `tiny.ARCHITECTURES`; returns its folder."""
        self._run("make", kind, str(folder))
        return folder

    def read(self, folder: Path, text: str) -> "Reading":
        """Returns what a model, or an adapter with its base, makes of a text."""
        printed = self._run("read", str(folder), text)
        return Reading(**json.loads(printed.splitlines()[-1]))  # libraries may print before

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.python, "-m", "tests.support.older_transformers", *arguments],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@dataclass(frozen=True)
class Reading:
    """What a model makes of a text."""

    tokens: list[int]
    chat: list[int]
    """The tokens of the text as a user's message; [] without a chat template."""
    logits: list[list[float]]
    """`[token, vocab]`, of the text."""


def install(folder: Path) -> OlderTransformers:
    """Makes the environment; it takes torch from the project's own. Skips without an index."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    environment = OlderTransformers(folder / "bin" / "python")
    _pip(environment, TRANSFORMERS)
    _pip(environment, "--no-deps", PEFT)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def _pip(environment: OlderTransformers, *arguments: str) -> None:
    done = subprocess.run(
        [environment.python, "-m", "pip", "install", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution found" in done.stderr:
        pytest.skip(f"no package index has {arguments[-1]}")
    assert done.returncode == 0, done.stderr


def read(folder: Path, text: str) -> Reading:
    """Returns what a model, or an adapter with its base, makes of a text; in any environment."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    is_adapter = (folder / "adapter_config.json").exists()
    loader = AutoPeftModelForCausalLM if is_adapter else AutoModelForCausalLM
    model = loader.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text)["input_ids"]
    chat: list[int] = []
    if tokenizer.chat_template:
        message = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        chat = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0].tolist()
    return Reading(tokens=tokens, chat=chat, logits=logits)


def _make(kind: str, folder: Path) -> None:
    from tests.support.tiny import byte_tokenizer, random_model

    tokenizer = byte_tokenizer()
    random_model(kind, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _main(command: str, *arguments: Any) -> None:
    if command == "make":
        kind, folder = arguments
        _make(kind, Path(folder))
    else:
        folder, text = arguments
        print(json.dumps(vars(read(Path(folder), text))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
