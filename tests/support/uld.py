"""ULD models made of two tiny random models, without training."""

import shutil
from pathlib import Path
from typing import Any

from meow_ray.models.folders import ULD_ASSISTANT, ULD_BASE
from meow_ray.models.uld import UldSettings, write_settings
from tests.support.tiny import random_model

PEAKED = 25.0
"""By how much the heads of random models are scaled, so that some tokens are improbable."""


def write_random(kind: str, tokenizer: Any, seed: int, folder: Path) -> Path:
    """Writes a random model of a type in `tiny.ARCHITECTURES`; returns its folder."""
    import torch

    model = random_model(kind, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.copy_(PEAKED * 0.02 * torch.randn(head.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_uld(base: Path, assistant: Path, settings: UldSettings, folder: Path) -> Path:
    """Writes a ULD model of two models; returns its folder."""
    shutil.copytree(base, folder / ULD_BASE)
    shutil.copytree(assistant, folder / ULD_ASSISTANT)
    write_settings(folder, settings)
    return folder
