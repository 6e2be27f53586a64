"""Names of the original's tensors and what they are called in sapiens_hf, readable in both directions.

Part of `original.py`; `KEY_TABLE` is the whole of it.
"""

from __future__ import annotations

import re

# Original name -> ours. `*` is weight or bias, `{i}` a layer number, `{3i}` a position in a Sequential where a
# convolution, its norm and its activation take three places. A tuple: query, key and value are rows of one matrix, in
# this order. `None`: dropped on purpose. The table is read in both directions, so no two rows of one task have the
# same target.
_BLOCK_TABLE: dict[str, str | tuple[str, ...]] = {
    "ln1.*": "layernorm_before.*",
    "attn.qkv.*": ("attention.q_proj.*", "attention.k_proj.*", "attention.v_proj.*"),
    "attn.proj.*": "attention.o_proj.*",
    "ln2.*": "layernorm_after.*",
    "ffn.layers.0.0.*": "mlp.fc1.*",
    "ffn.layers.1.*": "mlp.fc2.*",
}


def _blocks(original: str, ours: str) -> dict[str, str | tuple[str, ...]]:
    return {
        original + source: ours + target if isinstance(target, str) else tuple(ours + part for part in target)
        for source, target in _BLOCK_TABLE.items()
    }


KEY_TABLE: dict[str, str | tuple[str, ...] | None] = {
    "backbone.cls_token": "model.embeddings.cls_token",
    "backbone.pos_embed": "model.embeddings.position_embeddings",
    "backbone.patch_embed.projection.*": "model.embeddings.patch_embeddings.projection.*",
    **_blocks("backbone.layers.{i}.", "model.encoder.layers.{i}."),
    "backbone.ln1.*": "model.layernorm.*",
    "neck.decoder_embed.*": "decoder.embed.*",
    "neck.mask_token": "decoder.mask_token",
    "neck.decoder_pos_embed": "decoder.position_embeddings",
    **_blocks("neck.decoder_blocks.{i}.", "decoder.layers.{i}."),
    "neck.ln1.*": "decoder.layernorm.*",
    "neck.decoder_pred.*": "decoder.predictor.*",
    "head.deconv_layers.{3i}.weight": "head.deconv_layers.{i}.convolution.weight",
    "head.conv_layers.{3i}.*": "head.conv_layers.{i}.convolution.*",
    "head.final_layer.*": "head.final_conv.*",
    "decode_head.deconv_layers.{3i}.weight": "head.deconv_layers.{i}.convolution.weight",
    "decode_head.conv_layers.{3i}.*": "head.conv_layers.{i}.convolution.*",
    "decode_head.conv_seg.*": "head.final_conv.*",
    # Constants of the image normalisation; tracing keeps them, the image processor has its own.
    "data_preprocessor.mean": None,
    "data_preprocessor.std": None,
}
# Rows that a task's checkpoint has, beside the backbone.
TASK_PREFIXES = {
    "pretraining": ("neck.",),
    "encoder": (),
    "pose": ("head.",),
    "segmentation": ("decode_head.",),
    "depth": ("decode_head.",),
    "normal": ("decode_head.",),
}


def _matcher(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{3i\}", r"(?P<i3>\d+)")
    return re.compile(text.replace(r"\*", "(?P<leaf>weight|bias)"))


def fill_key(pattern: str, index: int | None, leaf: str | None) -> str:
    """The name that a pattern of the table means for a layer number and a leaf."""
    filled = pattern if index is None else pattern.replace("{i}", str(index)).replace("{3i}", str(3 * index))
    return filled if leaf is None else filled.replace("*", leaf)


_MATCHERS = {source: _matcher(source) for source in KEY_TABLE}
_TARGET_MATCHERS = {
    part: _matcher(part)
    for target in KEY_TABLE.values()
    if target
    for part in ([target] if isinstance(target, str) else target)
}


def translate_key(name: str) -> tuple[str, ...] | None:
    """Our names for one original name: one, three for a fused query-key-value tensor, none for a dropped one.

    Returns:
        The names in the order of the rows they take; `None` if the table does not know the name.
    """
    for source, target in KEY_TABLE.items():
        match = _MATCHERS[source].fullmatch(name)
        if not match:
            continue
        found = match.groupdict()
        index = int(found["i"]) if found.get("i") else None
        if found.get("i3"):
            index, rest = divmod(int(found["i3"]), 3)
            if rest:
                continue
        targets = () if target is None else (target,) if isinstance(target, str) else target
        return tuple(fill_key(part, index, found.get("leaf")) for part in targets)
    return None


def original_key(name: str, task: str) -> tuple[str, tuple[str, ...]] | None:
    """The inverse of `translate_key`, for the checkpoints of one task.

    Args:
        name: Name in a task model, with `model.` in front of the backbone.
        task: One of the keys of `TASK_PREFIXES`.

    Returns:
        The original name, and all our names that it is made of; `None` for a name of no original tensor.
    """
    for source, target in KEY_TABLE.items():
        if target is None or not source.startswith(("backbone.", *TASK_PREFIXES[task])):
            continue
        parts = (target,) if isinstance(target, str) else target
        for part in parts:
            match = _TARGET_MATCHERS[part].fullmatch(name)
            if match:
                found = match.groupdict()
                index, leaf = int(found["i"]) if found.get("i") else None, found.get("leaf")
                return fill_key(source, index, leaf), tuple(fill_key(p, index, leaf) for p in parts)
    return None
