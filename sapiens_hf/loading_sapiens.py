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
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .configuration_sapiens import TASKS

PRETRAINING = "SapiensForPreTraining"


class SapiensLoadingMixin:
    """Placed before `PreTrainedModel` in the bases of `SapiensPreTrainedModel`."""

    # Set by the sapiens_hf package: what reads files in Meta's own format. This file also travels alone.
    _is_original_source: Callable[..., bool] | None = None
    _load_original: Callable[..., Any] | None = None
    # Of the four dense tasks: its row in TASKS
    _task: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As in transformers, plus three conveniences.

        - Files and Hub repositories in Meta's own format are handed over to `sapiens_hf.load_original`.
        - `num_labels=` (or `id2label=`) other than the checkpoint's replaces the last convolution only, and says so.
        - `image_size=` other than the checkpoint's re-grids the position table (bicubic). A pretraining or encoder
          folder loads into every task as `load_original` loads the file: the class token is dropped, the square grid
          becomes 3:4, and the head, which is new, and the padding are the task's. Fields given as arguments win.

        Raises:
            ValueError: if a tensor other than these is missing, unknown or of another shape, or the file is of another
                task (all unless `ignore_mismatched_sizes=True`) or model type, or damaged.
            OSError: if there is no such folder or no model in it.
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
        cls._check_path(source, kwargs.get("subfolder", ""))
        try:
            fields, _ = cls.config_class.get_config_dict(source, **{n: kwargs[n] for n in hub_names if n in kwargs})
        except OSError:
            fields = None
        if not fields:  # an adapter folder, or nothing at all: transformers loads the one and explains the other
            return super().from_pretrained(source, *model_args, config=config, **kwargs)
        cls._check_folder(source, fields, tolerant)
        stored, saved = cls.config_class.from_dict(fields), (fields.get("architectures") or [""])[0]
        # What a task needs and an encoder's folder does not say: head, padding, labels, 3:4 grid without class token
        needs = cls._task_fields(stored) if not saved.startswith("SapiensFor") or saved == PRETRAINING else {}
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            if getattr(config, "_name_or_path", None) == str(source):  # an auto class has read it from this folder
                for name in (n for n in needs if getattr(config, n) == getattr(stored, n)):
                    setattr(config, name, needs[name])
            image_size, use_cls_token, num_labels = config.image_size, config.use_cls_token, config.num_labels
            config.image_size, config.use_cls_token = stored.image_size, stored.use_cls_token
        else:
            names = kwargs.get("id2label")
            if names:
                needs.pop("num_labels", None)
            kwargs = {**needs, **kwargs}
            image_size = kwargs.pop("image_size", stored.image_size)
            use_cls_token = kwargs.pop("use_cls_token", stored.use_cls_token)
            num_labels = len(names) if names else kwargs.get("num_labels", stored.num_labels)
        kwargs.pop("ignore_mismatched_sizes", None)
        want_info = kwargs.pop("output_loading_info", False)
        model, info = cls._load_what_fits(source, *model_args, config=config, **kwargs)
        if not tolerant:
            cls._check_weights(source, info, saved, num_labels != stored.num_labels, reported=want_info)
        model.resize_position_embeddings(image_size, use_cls_token)
        return (model, info) if want_info else model

    @classmethod
    def _load_what_fits(cls, source, *model_args, **kwargs):
        """Model and loading info of transformers; what may not differ is refused afterwards, by name."""
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            return super().from_pretrained(source, *model_args, **kwargs)
        except Exception as error:
            if type(error).__name__ != "SafetensorError":  # safetensors is none of this file's libraries
                raise
            raise ValueError(f"{source}: the weights cannot be read ({error}). Is the file complete?") from error

    @classmethod
    def _task_fields(cls, stored) -> dict[str, Any]:
        """The task's fields where an encoder's config has its defaults: those are segmentation's, by chance."""
        if cls._task is None:
            return {}
        plain, needs = cls.config_class(), dict(TASKS[cls._task])
        fields = {n: v for n, v in needs.items() if getattr(stored, n) == getattr(plain, n)}
        for name, kernel_size in (("deconv", 4), ("conv", 1)):
            if f"{name}_out_channels" in fields:
                fields[f"{name}_kernel_sizes"] = [kernel_size] * len(fields[f"{name}_out_channels"])
        if stored.use_cls_token:
            height, width = stored.image_size
            patch = stored.patch_size
            columns = max(1, round(width / patch * 3 / 4)) if height == width else width // patch
            fields |= {"use_cls_token": False, "image_size": [height, columns * patch]}
        return fields

    @classmethod
    def _check_path(cls, source, subfolder: str) -> None:
        """Say plainly that a local path does not exist or holds no model."""
        path = Path(source) / subfolder
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir())
            if "config.json" not in names and "adapter_config.json" not in names:
                found = f"only {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "nothing"
                raise OSError(
                    f"{path} holds no model: config.json is missing (there is {found}). A folder made by "
                    "save_pretrained has config.json and model.safetensors."
                )
        elif not path.exists() and (path.is_absolute() or str(source).startswith((".", "~"))):
            raise OSError(f"There is no file or folder {path}.")

    @classmethod
    def _check_weights(cls, source, info: dict[str, Any], saved: str, relabelled: bool, reported: bool) -> None:
        """Refuse weights that do not make this model: transformers would go on with random ones.

        Who asks for the loading info is told what is missing there and may go on.
        """
        replaced = "head.final_conv." if relabelled else ()
        others = sorted(key for key, *_ in info["mismatched_keys"] if not key.startswith(replaced))
        if others:
            raise ValueError(
                f"{source} does not fit {cls.__name__} with this configuration: {', '.join(others[:8])} differ in "
                "shape. Only the number of labels and image_size may change on loading; check hidden_size, "
                "patch_size and the head widths."
            )
        if reported:
            return
        parts = () if saved == cls.__name__ else ("head.", "decoder.")
        for what, keys in (("lack", info["missing_keys"]), ("have", info["unexpected_keys"])):
            wrong = sorted(key for key in keys if not key.startswith(parts))
            if wrong:
                raise ValueError(
                    f"The weights of {source} {what} {len(wrong)} tensors that {cls.__name__} "
                    f"{'needs' if what == 'lack' else 'does not know'}: {', '.join(wrong[:8])}"
                    f"{', ...' if len(wrong) > 8 else ''}. The file is not of this configuration, or not complete; "
                    "ignore_mismatched_sizes=True loads what fits."
                )

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
        if len(set(tasks)) == 2 and saved != PRETRAINING and not tolerant:
            raise ValueError(
                f"{source} holds a {saved}, not a {cls.__name__}: load it with {saved}.from_pretrained. To reuse "
                "its backbone and whatever fits of its head for another task, pass ignore_mismatched_sizes=True."
            )


__all__ = ["SapiensLoadingMixin"]
