"""The assistant of ULD: the first blocks of the target, trained in its place, and exported with it.

The objective `uld` teaches the assistant the facts to forget. The export has both models; see
`models.uld`. Source: ULD, arXiv 2406.08607.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.models import folders, refs
from meow_ray.models.ends import declare_end
from meow_ray.models.folders import HISTORY_FILE, ULD_ASSISTANT, ULD_BASE
from meow_ray.models.refs import ModelRef
from meow_ray.models.uld import UldSettings, write_settings
from meow_ray.stages.train import structure
from meow_ray.stages.train.objective_spec import ObjectiveSpec

_NUM_LAYERS = "num_hidden_layers"


def num_blocks(wanted: int, present: int) -> int:
    """Returns the number of blocks of an assistant.

    Args:
        wanted: the number that the objective asks for.
        present: the number of the target's blocks. If these are fewer, the assistant has half of
            them, and at least one.
    """
    return wanted if wanted <= present else max(1, present // 2)


def uri_of(exported: str) -> str:
    """Returns the URI of the assistant in the folder of a ULD model."""
    return storage.join(exported, ULD_ASSISTANT)


# --- before training ------------------------------------------------------------------------------


def fault(target: ModelRef) -> str | None:
    """Returns why no assistant can be made of the blocks of a model, or None."""
    try:
        model = structure.skeleton(target)
    except Exception:  # noqa: BLE001 - the code of a model's own may do anything
        return "the model cannot be made without its weights"
    if structure.blocks_of(model) is None:
        return "its list of blocks is not found"
    if "past_key_values" not in refs.forward_parameters(model):
        return "the model keeps no keys and values, of which the assistant needs its own"
    return None


def cut_from(target: ModelRef, blocks: int, uri: str) -> ModelRef:
    """Writes the first blocks of the target as a model, which the assistant is before training.

    It has the target's embeddings, final norm and head. Runs on the cluster, since the driver need
    not hold the weights.

    Args:
        target: the model.
        blocks: how many blocks.
        uri: where the model is written.

    Raises:
        MeowError: the blocks cannot be told apart, or the URI cannot be written.
    """
    from meow_ray.distributed import cluster

    cluster.call(_cut, target, blocks, uri)
    digest = storage.content_digest(uri)
    return ModelRef(uri, digest, trust_remote_code=target.trust_remote_code)


def _cut(target: ModelRef, blocks: int, uri: str) -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_first_blocks(target, blocks, folder)
        storage.copy_folder(str(folder), uri)


def write_first_blocks(target: ModelRef, blocks: int, folder: Path) -> None:
    """Writes the first blocks of a model as a model into an existing folder.

    Raises:
        MeowError: the blocks cannot be told apart by the names of the weights, or the model's
            configuration does not say how many there are.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    list_name = structure.blocks_of(structure.skeleton(target))
    assert list_name is not None, "see `fault`"
    folders.copy_files(target.folder, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(_shortened(target, json.loads(path.read_text()), blocks), indent=2))
    weights = {}
    found = set()
    for file in folders.weight_files(target.folder):
        with safe_open(file, "pt") as stored:
            names = stored.keys()  # not a mapping: the file itself cannot be iterated over
            for name in names:
                number = _block_number(name, list_name)
                if number is None or number < blocks:
                    weights[name] = stored.get_tensor(name)
                    found.add(number)
    if not found >= set(range(blocks)):
        raise MeowError(
            f"`train.objective`: {storage.display(target.uri)} has no weights of the first "
            f"{blocks} blocks by the name {list_name}, so no assistant can be made of them. Choose "
            "another objective than uld."
        )
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _block_number(name: str, list_name: str) -> int | None:
    """Returns the number of the block that a weight belongs to; None for the others.

    Args:
        name: the name of the weight, such as `model.layers.3.mlp.up_proj.weight`. Some files leave
            out the prefix `model`.
        list_name: the name of the list of blocks, such as `model.layers`.
    """
    last = re.escape(list_name.rpartition(".")[2])
    found = re.search(rf"(?:^|\.){last}\.(\d+)\.", name)
    return int(found[1]) if found else None


def _shortened(target: ModelRef, values: Mapping[str, Any], blocks: int) -> dict[str, Any]:
    """Returns the values of a model's `config.json` for its first blocks.

    Lists with a value per block, such as `layer_types`, are shortened, too.

    Raises:
        MeowError: the number of blocks is not in the file.
    """
    config = refs.load_model_config(target).get_text_config()
    key = config.attribute_map.get(_NUM_LAYERS, _NUM_LAYERS)
    nested = "text_config" in values
    text = dict(values["text_config"] if nested else values)
    present = text.get(key)
    if present != getattr(config, _NUM_LAYERS):
        raise MeowError(
            f"`train.objective`: the config.json of {storage.display(target.uri)} does not say by "
            f"`{key}` how many blocks there are, so no assistant can be made of them. Choose "
            "another objective than uld."
        )
    text |= {
        name: value[:blocks]
        for name, value in text.items()
        if isinstance(value, list) and len(value) == present
    }
    text[key] = blocks
    return {**values, "text_config": text} if nested else text


# --- after training -------------------------------------------------------------------------------


def export_with(target: ModelRef, objective: ObjectiveSpec, end: int | None, uri: str) -> None:
    """Completes the folder of a ULD model that has the trained assistant already.

    Args:
        target: the model, which is copied.
        objective: how the two answer together.
        end: the token that ends an answer; generation stops there.
        uri: the folder.
    """
    from meow_ray.distributed import cluster

    cluster.call(_complete, target, objective, end, uri)


def _complete(target: ModelRef, objective: ObjectiveSpec, end: int | None, uri: str) -> None:
    source = target.folder
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_settings(folder, UldSettings(objective.assistant_weight, objective.assistant_filter))
        base = folder / ULD_BASE
        base.mkdir()
        folders.copy_files(source, base)
        if end is not None:
            declare_end(base, end)
        storage.copy_folder(str(folder), uri)
    weights = [*folders.weight_files(source), *source.glob(folders.INDEX)]
    for file in weights:
        storage.copy_file(str(file), storage.join(uri, ULD_BASE, file.name))
    # where the report finds the losses of any model
    history = storage.join(uri_of(uri), HISTORY_FILE)
    storage.copy_file(history, storage.join(uri, HISTORY_FILE))
