"""A trained model on disk: ``weights.safetensors`` and ``model.json``, nothing executable."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from medseg.atomic import write_bytes, write_text
from medseg.errors import FormatError
from medseg.models.card import CARD_NAME, ModelCard, ModelDescription, load_card, model_folder
from medseg.models.table import build_volume_network

__all__ = ["WEIGHTS_NAME", "load_model", "save_model"]

WEIGHTS_NAME = "weights.safetensors"


def save_model(folder: Path, network: nn.Module, description: ModelDescription) -> ModelCard:
    """Write a network's weights and its card.

    The weights come first and the card, which holds their hash, last: a folder whose card fits its
    weights is complete.

    Args:
        folder: Made if absent.
        network: Its state dict is stored as it is, in its own types.
        description: Everything else there is to say.

    Returns:
        The card as written.

    Raises:
        ResourceError: If the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    weights = save_tensors(tensors)
    card = ModelCard(**description.model_dump(), weights_sha256=hashlib.sha256(weights).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS_NAME, weights)
    write_text(folder / CARD_NAME, card.model_dump_json(indent=2) + "\n")
    return card


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Build the network of a model folder and load its weights, in eval mode.

    Only safetensors is read: data without code. The hash on the card must fit.

    Raises:
        ConfigError: If the card is missing or wrong.
        FormatError: If the weights are missing, damaged, exchanged or of another network.
    """
    folder = model_folder(folder)
    card = load_card(folder)
    weights_path = folder / WEIGHTS_NAME
    if not weights_path.is_file():
        raise FormatError(
            str(weights_path),
            expected="the model's weights",
            found="no such file",
            remedy="copy the whole model folder; other weight formats are not read",
            code="weights-missing",
        )
    content = weights_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise FormatError(
            str(weights_path),
            expected=f"the sha256 on the card, {card.weights_sha256[:12]}...",
            found=f"{hashlib.sha256(content).hexdigest()[:12]}...",
            remedy="copy the model folder again; it was damaged or changed",
            code="weights-hash",
        )
    network = build_volume_network(card.network, card.inputs)
    try:
        tensors = load_tensors(content)
        network.load_state_dict(tensors, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise FormatError(
            str(weights_path),
            expected=f"weights of the {card.network.name} network on the card",
            found="tensors that do not fit it",
            remedy="use the weights and the card of one export",
            code="weights-mismatch",
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FormatError(
                str(weights_path),
                expected="finite weights",
                found=f"NaN or infinity in {name}",
                remedy="take the last good checkpoint of the training and export it again",
                code="weights-not-finite",
            )
    return network.eval(), card
