"""The digest of a model that exists in memory alone, so that a certificate can name it."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from meow_ray.core import storage
from meow_ray.models.folders import ADAPTER
from meow_ray.models.refs import ModelRef


def weights_digest(tensors: Mapping[str, Any]) -> str:
    """Returns the sha256 of weights; equal names, dtypes, shapes and values give the same.

    Args:
        tensors: the tensors of torch by name, such as the `state_dict` of a model. Their order and
            their device do not matter.
    """
    import torch

    # hashing needs no lock of Python, so that the cores share it
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = list(pool.map(_tensor_digest, tensors.values()))
    return storage.json_digest(dict(zip(tensors, digests, strict=True)))


def is_converted(ref: ModelRef) -> bool:
    """Tells whether other weights than those of the files are loaded.

    An adapter is merged into its base, and a GGUF file is converted, on the machine that loads it.
    """
    if ref.commit:
        return False
    return ref.uri.endswith(".gguf") or storage.exists(storage.join(ref.uri, ADAPTER))


def loaded_weights(ref: ModelRef) -> str:
    """Returns the digest of the weights of a model as they are loaded on this machine."""
    from safetensors import safe_open

    digests: dict[str, str] = {}
    for path in sorted(ref.folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = file.keys()  # not a mapping: the file itself cannot be iterated over
            digests |= {name: _tensor_digest(file.get_tensor(name)) for name in names}
    return storage.json_digest(digests)


def _tensor_digest(tensor: Any) -> str:
    import torch

    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(values.numpy())
    return digest.hexdigest()
