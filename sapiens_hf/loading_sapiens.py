# Copyright 2026 The sapiens_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What `from_pretrained` of the Sapiens models does beyond transformers."""

import copy
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig


class SapiensLoadingMixin:
    """Placed before `PreTrainedModel` in the bases of `SapiensPreTrainedModel`."""

    # Set by the sapiens_hf package: what reads files in Meta's own format. This file also travels alone.
    _is_original_source: Callable[..., bool] | None = None
    _load_original: Callable[..., Any] | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As in transformers, plus three conveniences.

        - Files and Hub repositories in Meta's own format are handed over to `sapiens_hf.load_original`.
        - `num_labels=` (or `id2label=`) other than the checkpoint's replaces the last convolution only, and says so.
        - `image_size=` other than the checkpoint's re-grids the position table (bicubic), and `use_cls_token=False`
          drops the class token of a pretrained encoder, so a pretraining folder loads into every task.

        Raises:
            ValueError: if a tensor other than these has another shape than the model, or the file is of another task
                (unless `ignore_mismatched_sizes=True`) or model type.
        """
        source = pretrained_model_name_or_path
        if source is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(source, *model_args, config=config, **kwargs)
        if cls._is_original_source is not None and cls._is_original_source(source):
            return cls._from_original(source, config, kwargs)
        return cls._from_folder(source, *model_args, config=config, **kwargs)

    @classmethod
    def _from_original(cls, source, config, kwargs):
        return cls._load_original(source, config=config, expected_class=cls.__name__, **kwargs)

    @classmethod
    def _from_folder(cls, source, *model_args, config, **kwargs):
        hub_names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        tolerant = kwargs.get("ignore_mismatched_sizes", False)
        try:
            fields, _ = cls.config_class.get_config_dict(source, **{n: kwargs[n] for n in hub_names if n in kwargs})
        except OSError:
            fields = None
        if not fields:  # an adapter folder, or nothing at all: transformers loads the one and explains the other
            return super().from_pretrained(source, *model_args, config=config, **kwargs)
        cls._check_folder(source, fields, tolerant)
        stored = cls.config_class.from_dict(fields)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            image_size, use_cls_token, num_labels = config.image_size, config.use_cls_token, config.num_labels
            config.image_size, config.use_cls_token = stored.image_size, stored.use_cls_token
        else:
            image_size = kwargs.pop("image_size", stored.image_size)
            use_cls_token = kwargs.pop("use_cls_token", stored.use_cls_token)
            num_labels = (
                len(kwargs["id2label"]) if "id2label" in kwargs else kwargs.get("num_labels", stored.num_labels)
            )
        kwargs.pop("ignore_mismatched_sizes", None)
        want_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            source,
            *model_args,
            config=config,
            ignore_mismatched_sizes=True,  # what may not differ is refused below, by name
            output_loading_info=True,
            **kwargs,
        )
        replaced = "head.final_conv." if num_labels != stored.num_labels else ()
        others = sorted(key for key, *_ in info["mismatched_keys"] if not key.startswith(replaced))
        if others and not tolerant:
            raise ValueError(
                f"{source} does not fit {cls.__name__} with this configuration: {', '.join(others[:8])} differ in "
                "shape. Only the number of labels and image_size may change on loading; check hidden_size, "
                "patch_size and the head widths."
            )
        model.resize_position_embeddings(image_size, use_cls_token)
        return (model, info) if want_info else model

    @classmethod
    def _check_folder(cls, source, fields: dict[str, Any], tolerant: bool) -> None:
        """Refuse what transformers would load with random weights in the missing places, or with a head that means
        something else: other model types, and the four dense tasks in place of each other.
        """
        model_type, saved = fields.get("model_type"), (fields.get("architectures") or [""])[0]
        if model_type not in (None, cls.config_class.model_type):
            raise ValueError(
                f"{source} holds a model of type {model_type!r}, not {cls.config_class.model_type!r}: load it with "
                "transformers.AutoModel."
            )
        tasks = [name for name in (saved, cls.__name__) if name.startswith("SapiensFor")]
        if len(set(tasks)) == 2 and saved != "SapiensForPreTraining" and not tolerant:
            raise ValueError(
                f"{source} holds a {saved}, not a {cls.__name__}: load it with {saved}.from_pretrained. To reuse "
                "its backbone and whatever fits of its head for another task, pass ignore_mismatched_sizes=True."
            )


__all__ = ["SapiensLoadingMixin"]
