"""Weights that come from elsewhere -> our modules: published checkpoints, and folders as the hub keeps them.

Every entry of a state dict is either used or refused: a checkpoint that fits by half never loads in silence.

    network = load_published_file("lavt", "refcoco.pth", vocab_file="vocab.txt")
    save_pretrained(network, "lavt_refcoco")
    network = from_pretrained("lavt_refcoco")
"""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rislib.methods import BUILDERS, build
from rislib.methods.cris import cris_r50, cris_r101
from rislib.methods.lavt import lavt
from rislib.methods.magnet import magnet
from rislib.nouns import Method


class CheckpointError(ValueError):
    """This is no checkpoint, or not one of this network."""


# --- names ------------------------------------------------------------------------------------
# A part of our names, and what stands there in the published ones. Read from top to bottom: each line
# sees what those above it made.

# github.com/DerrickWang005/CRIS.pytorch
_CRIS_NAMES = (
    ("connect.", "backbone.visual.attnpool.connect."),
    ("clip.model.", "backbone."),
    ("neck.p3.", "neck.f3_v_proj."),
    ("neck.p4.", "neck.f2_v_proj."),
    ("neck.p5.", "neck.f1_v_proj."),
    ("neck.sentence.", "neck.txt_proj."),
    ("neck.norm.", "neck.norm_layer."),
    ("neck.fuse4.", "neck.f2_cat."),
    ("neck.fuse3.", "neck.f3_cat."),
    ("neck.q", "neck.f4_proj"),
    ("neck.aggregate.", "neck.aggr."),
    ("neck.coordinates.0.", "neck.coordconv.0.conv1."),
    ("neck.coordinates.1.", "neck.coordconv.1."),
    (".self_attention.", ".self_attn."),
    (".self_attention_norm.", ".self_attn_norm."),
    (".cross_attention.", ".multihead_attn."),
    (".cross_attention_norm.", ".cross_attn_norm."),
    ("projector.pixels.", "proj.vis."),
    ("projector.sentence.", "proj.txt."),
)

# github.com/yz93/LAVT-RIS. BERT is a second dict of the file, "bert_model".
_LAVT_NAMES = (
    ("bert.model.", "bert_model."),
    # patch merging begins a stage in timm, and ends the one before here
    ("swin.layers.1.downsample.", "backbone.layers.0.downsample."),
    ("swin.layers.2.downsample.", "backbone.layers.1.downsample."),
    ("swin.layers.3.downsample.", "backbone.layers.2.downsample."),
    ("swin.", "backbone."),
    *((f"fusions.{i}.", f"backbone.layers.{i}.fusion.") for i in range(4)),
    (".fusion.visual.", ".fusion.vis_project."),
    (".fusion.query.", ".fusion.image_lang_att.f_query."),
    (".fusion.key.", ".fusion.image_lang_att.f_key.0."),
    (".fusion.value.", ".fusion.image_lang_att.f_value.0."),
    (".fusion.read.", ".fusion.image_lang_att.W."),
    (".fusion.fuse.", ".fusion.project_mm."),
    *((f"gates.{i}.", f"backbone.layers.{i}.res_gate.") for i in range(4)),
    ("norms.", "backbone.norm"),
    *((f"decoder.join{i}.0.0.", f"classifier.conv1_{i + 1}.") for i in (3, 2, 1)),
    *((f"decoder.join{i}.0.1.", f"classifier.bn1_{i + 1}.") for i in (3, 2, 1)),
    *((f"decoder.join{i}.1.0.", f"classifier.conv2_{i + 1}.") for i in (3, 2, 1)),
    *((f"decoder.join{i}.1.1.", f"classifier.bn2_{i + 1}.") for i in (3, 2, 1)),
    ("decoder.classify.", "classifier.conv1_1."),
)

# github.com/yxchng/mask-grounding
_MAGNET_NAMES = (
    # patch merging begins a stage in timm, and ends the one before here
    *((f"swin.layers.{i + 1}.downsample.", f"image_model.layers.{i}.downsample.") for i in range(3)),
    ("swin.", "image_model."),
    ("bert.model.", "language_model."),
    ("cams.", "image_model.layers."),
    *((f"image_gates.{i}.", f"image_model.layers.{i}.res_gate.") for i in range(4)),
    ("text_fusions.", "language_model.pwams."),
    ("text_gates.", "language_model.res_gates."),
    *((f"pwams.{i}.query.", f"pwams.{i}.image_lang_att.f_query.0.") for i in range(4)),
    *((f"pwams.{i}.read.", f"pwams.{i}.image_lang_att.W.0.") for i in range(4)),
    *(
        (f"{place}.{ours}.", f"{place}.{published}.")
        for place in ("fusion", *(f"fusions.{i}" for i in range(4)), *(f"pwams.{i}" for i in range(4)))
        for ours, published in (
            ("visual", "vis_project"),
            ("query", "image_lang_att.f_query"),
            ("key", "image_lang_att.f_key.0"),
            ("value", "image_lang_att.f_value.0"),
            ("read", "image_lang_att.W"),
            ("fuse", "project_mm"),
        )
    ),
    ("unread.image_norms.", "image_model.norm"),
    ("unread.text_norms.", "language_model.norms."),
    ("text_projection.", "lang_proj."),
    # the head
    ("head.pixel_decoder.project.", "classifier.pixel_decoder.input_proj."),
    ("head.pixel_decoder.levels", "classifier.pixel_decoder.transformer.level_embed"),
    ("head.pixel_decoder.embed.", "classifier.pixel_decoder.mask_features."),
    ("head.pixel_decoder.", "classifier.pixel_decoder.transformer.encoder."),
    (".attention.offsets.", ".self_attn.sampling_offsets."),
    (".attention.weights.", ".self_attn.attention_weights."),
    (".attention.value.", ".self_attn.value_proj."),
    (".attention.out.", ".self_attn.output_proj."),
    (".attention_norm.", ".norm1."),
    *((f"encoder.layers.{i}.ffn_norm.", f"encoder.layers.{i}.norm2.") for i in range(4)),
    *(
        (f"head.layers.{i}.{ours}.", f"head.transformer_{part}_layers.{i}.{published}.")
        for i in range(9)
        for ours, part, published in (
            ("cross_attention", "cross_attention", "multihead_attn"),
            ("cross_norm", "cross_attention", "norm"),
            ("self_attention", "self_attention", "self_attn"),
            ("self_norm", "self_attention", "norm"),
            ("ffn", "ffn", "ffn"),
            ("ffn_norm", "ffn", "norm"),
        )
    ),
    (".ffn.0.", ".linear1."),
    (".ffn.2.", ".linear2."),
    *((f"head.mask.{2 * i}.", f"head.mask_embed.layers.{i}.") for i in range(3)),
    ("head.norm.", "head.decoder_norm."),
    ("head.classify.", "head.class_embed."),
    ("head.query", "head.query_feat.weight"),
    ("head.position", "head.query_embed.weight"),
    ("head.levels", "head.level_embed.weight"),
    ("head.", "classifier.predictor."),
)

_PUBLISHED = {
    "cris_r50": (cris_r50, _CRIS_NAMES),
    "cris_r101": (cris_r101, _CRIS_NAMES),
    "lavt": (lavt, _LAVT_NAMES),
    "magnet": (partial(magnet, released_text_mask=True, mask_grounding=0.0), _MAGNET_NAMES),
}

# --- published checkpoints --------------------------------------------------------------------


def load_published(name: str, checkpoint: Mapping[str, Any], **options) -> Method:
    """The network `name` with a published checkpoint's weights, in eval mode.

    Args:
        name: "cris_r50", "cris_r101", "lavt" (also for lavt_one) or "magnet".
        checkpoint: a state dict, or what the authors' training script wrote around it ("state_dict", or
            "model" and perhaps "bert_model", beside the optimiser's state and other things that are not
            looked at). The "module." that DistributedDataParallel puts in front is tolerated.
        options: keyword arguments of the builder, such as `dropout`.

    Raises:
        ValueError: `name` is unknown.
        CheckpointError: entries are missing, unexpected, misshapen or different: all are listed.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no published checkpoint is known as {name!r}, only {', '.join(_PUBLISHED)}")
    state = state_dict(checkpoint)  # first, as it is cheap
    builder, names = _PUBLISHED[name]
    model = builder(**options)
    fill(model, state, names)
    return model.eval()


def load_published_file(name: str, path: str | Path, **options) -> Method:
    """`load_published` from a file as the authors published it, or from a .safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, CheckpointError: as `load_published` and `read_checkpoint`.
    """
    return load_published(name, read_checkpoint(path), **options)


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """What a .safetensors file or one of torch's holds.

    No code of the file is run: beside tensors it may hold plain values and argparse's namespaces.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read so.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            checkpoint = load_file(path)
        else:
            with torch.serialization.safe_globals([Namespace]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint, or it holds Python objects. Those are not unpickled here, since that "
            f"can run any code: if you trust it, save its state dict alone and load that. torch says: {error}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one: {error}") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__} instead of a state dict")
    return checkpoint


def state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The one flat state dict of a checkpoint as the papers' scripts write them.

    BERT's entries begin with "bert_model.", whether they lay beside the model (LAVT) or in it (lavt_one).

    Raises:
        CheckpointError: an entry is no tensor.
    """
    model = checkpoint.get("model", checkpoint.get("state_dict", checkpoint))
    if not isinstance(model, Mapping):
        raise CheckpointError(f"the checkpoint's model is a {type(model).__name__} instead of a state dict")
    state = {}
    for key, value in model.items():
        key = key.removeprefix("module.")
        if key.startswith("text_encoder."):
            key = f"bert_model.{key.removeprefix('text_encoder.')}"
        state[key] = value
    if model is not checkpoint:
        for key, value in checkpoint.get("bert_model", {}).items():
            state[f"bert_model.{key.removeprefix('module.')}"] = value
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"this is no state dict: {key} is a {type(value).__name__}")
    return state


def published_name(ours: str, names: Sequence[tuple[str, str]]) -> str:
    """The name that one of our parameters has in the published checkpoint."""
    for part, published in names:
        ours = ours.replace(part, published)
    return ours


@torch.no_grad()
def fill(model: Method, published: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> None:
    """Copy a published state dict into `model`, or, if anything does not fit, change nothing and raise.

    What only training needs (`Method.training_only`) is not looked for: it stays as it is.
    Batch norm's step counters may be missing: no result depends on them. Tables that we compute and others
    store (Swin's index of relative positions, BERT's position numbers) may be there if they equal ours.

    Raises:
        CheckpointError: lists every entry that is missing, unexpected, misshapen or different, under its
            published name.
    """
    wanted = {published_name(name, names): tensor for name, tensor in model.inference_state().items()}
    tables = {published_name(name, names): tensor for name, tensor in model.named_buffers()}
    tables = {name: tensor for name, tensor in tables.items() if name not in wanted}
    problems = [
        *(
            f"missing: {name}"
            for name in wanted
            if name not in published and not name.endswith("num_batches_tracked")
        ),
        *(f"unexpected: {name}" for name in published if name not in wanted and name not in tables),
        *(
            f"different: {name} is not the table that we compute"
            for name, tensor in tables.items()
            if name in published and not torch.equal(published[name].to(tensor), tensor)
        ),
        *(
            f"misshapen: {name} is {tuple(published[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in published and published[name].shape != tensor.shape
        ),
    ]
    if problems:
        raise CheckpointError("this checkpoint does not fit:\n  " + "\n  ".join(problems))
    for name, tensor in wanted.items():
        if name in published:
            tensor.copy_(published[name])


# --- the Hugging Face hub's convention --------------------------------------------------------

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VOCABULARIES = ("vocabulary", "vocab_file")  # builders' options that name a file; tokenizers keep it so, too

M = TypeVar("M", bound=Method)


def save_pretrained(network: Method, folder: str | Path) -> None:
    """Write a network as the hub keeps networks, so that `from_pretrained` can build it again.

    config.json        named size and options: {"method": "cris", "preset": "r50", "options": {"size": 320}}
    model.safetensors  the weights
    vocabulary.txt     the tokenizer's vocabulary (BERT's: vocab_file.txt), where that came from a file

    Options are those that the builder was called with: an attribute set later is not seen. What only
    training needs is left behind, weights and options.
    `hf upload NAME FOLDER` brings the folder to the hub.

    Raises:
        ValueError: no named size made this network, so that nothing tells how to build it again.
        TypeError: JSON cannot hold one of the options.
    """
    pairs = {builder: pair for pair, builder in BUILDERS.items()}
    builder, options = network.built_by or (None, {})
    if builder not in pairs:
        raise ValueError(
            f"this {type(network).__name__} was put together by hand, and only what one of "
            "rislib.methods.BUILDERS made can be built again: save its state_dict() instead"
        )
    method, preset = pairs[builder]
    files = {option: getattr(network.tokenizer, option, None) for option in VOCABULARIES}
    files = {option: Path(file) for option, file in files.items() if file}
    options = {option: value for option, value in options.items() if option not in network.training_only}
    options |= {option: f"{option}.txt" for option in files}
    config = json.dumps({"method": method, "preset": preset, "options": options}, indent=1)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for option, file in files.items():
        (folder / f"{option}.txt").write_bytes(file.read_bytes())
    weights = {name: tensor.contiguous() for name, tensor in network.inference_state().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config + "\n")


def from_pretrained(folder_or_repo: str | Path, kind: type[M] = Method, **hub) -> M:
    """A network that `save_pretrained` wrote, in eval mode.

    Args:
        folder_or_repo: a folder here, or a repository of the hub ("someone/lavt_refcoco").
        kind: the class that it must be of. Every network is a `Method`.
        hub: `revision`, `token`, `cache_dir`, ... go to `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a repository, or it lacks a file.
        ValueError: its builder is unknown here.
        CheckpointError: config.json describes no network of ours, or the weights do not fit it.
        TypeError: the network is of another class than `kind`.
    """
    folder = Path(folder_or_repo)
    if not folder.is_dir():
        wanted = [CONFIG, WEIGHTS, *(f"{option}.txt" for option in VOCABULARIES)]
        try:
            folder = Path(snapshot_download(str(folder_or_repo), allow_patterns=wanted, **hub))
        except (OSError, HFValidationError) as error:
            raise FileNotFoundError(f"no folder {folder_or_repo}, and the hub says: {error}") from error
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder_or_repo} has no {CONFIG}, which save_pretrained writes")
    try:
        config = json.loads((folder / CONFIG).read_text())
        files = {option: config["options"].get(option) for option in VOCABULARIES}
        # the name alone: no config.json can point out of its folder
        files = {option: folder / Path(file).name for option, file in files.items() if file}
        network = rebuild({**config, "options": config["options"] | files}, folder / WEIGHTS)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} describes no network of ours: {error!r}") from error
    if not isinstance(network, kind):
        raise TypeError(f"{folder_or_repo} holds a {type(network).__name__}, not a {kind.__name__}")
    return network


def rebuild(record: Mapping[str, Any], weights: str | Path) -> Method:
    """The network of a record ("method", "preset", "options") with weights from a file, in eval mode.

    Heads that only training needs are stripped.

    Raises:
        ValueError: the builder is unknown.
        FileNotFoundError, CheckpointError: there are no weights, or they do not fit.
    """
    network = build(record["method"], record["preset"], **{**record["options"], "pretrained": False})
    fill(network.strip(), read_checkpoint(weights), names=())
    return network.eval()
