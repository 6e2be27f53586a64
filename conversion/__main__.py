"""`python -m conversion`: parse, call, print. A verb is a function that adds its parser and one that runs it."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from sapiens_hf.onnxruntime_backend import ONNX_FILES
from sapiens_hf.original import TASK_CLASSES

from .convert import convert
from .onnx import export_onnx, report_table
from .publish import find_recipes, publication_table, publish
from .recipes import list_recipes, recipe_table
from .verify import verdict_table, verify

OVERRIDES = (
    "num_attention_heads",
    "decoder_num_attention_heads",
    "image_size",
    "patch_embeddings_padding",
    "num_labels",
)


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filename", help="file of the folder or repository, where there are several")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--num-attention-heads", type=int, help="for a width that no released network has")
    parser.add_argument("--decoder-num-attention-heads", type=int, help="the same for a pretraining decoder")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--patch-embeddings-padding", type=int, help="in pixels, where the file does not say it")
    parser.add_argument("--num-labels", type=int, help="another number of keypoints or classes: a new last layer")


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in OVERRIDES if getattr(arguments, name) is not None}


def _add_convert(verbs: Any) -> None:
    parser = verbs.add_parser("convert", help="write a folder for from_pretrained")
    parser.add_argument("source", help="checkpoint file, folder or repository id")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--task", choices=TASK_CLASSES, help="the file's own by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--license", help="licence of weights of your own, such as apache-2.0; Meta's by default")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    _add_source_options(parser)
    parser.set_defaults(run=_run_convert)


def _run_convert(arguments: argparse.Namespace) -> int:
    folder = convert(
        arguments.source,
        arguments.output,
        task=arguments.task,
        dtype=arguments.dtype,
        filename=arguments.filename,
        revision=arguments.revision,
        license=arguments.license,
        overwrite=arguments.overwrite,
        **_overrides(arguments),
    )
    print(f"{folder}: weights equal to the file, saved. Licence: {folder / 'LICENSE.md'}")
    return 0


def _add_verify(verbs: Any) -> None:
    parser = verbs.add_parser("verify", help="compare with an independent rendering of the original network")
    parser.add_argument("target", help="converted folder, or a checkpoint of the original")
    parser.add_argument("--source", help="the checkpoint that the folder was made from")
    _add_source_options(parser)
    parser.set_defaults(run=_run_verify)


def _run_verify(arguments: argparse.Namespace) -> int:
    comparisons = verify(
        arguments.target,
        arguments.source,
        filename=arguments.filename,
        revision=arguments.revision,
        **_overrides(arguments),
    )
    print(verdict_table(comparisons))
    return 0 if all(comparison.passed for comparison in comparisons) else 1


def _add_list(verbs: Any) -> None:
    parser = verbs.add_parser("list", help="the released checkpoints")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--size", help="only this size")
    parser.set_defaults(run=_run_list)


def _run_list(arguments: argparse.Namespace) -> int:
    print(recipe_table(list_recipes(arguments.task, arguments.size)))
    return 0


def _add_onnx(verbs: Any) -> None:
    parser = verbs.add_parser("onnx", help="export a model for onnxruntime and transformers.js")
    parser.add_argument("model", help="converted folder, repository id, or a checkpoint of the original")
    parser.add_argument("--output", required=True, help="folder to write; may be that of the model")
    parser.add_argument("--dtype", choices=ONNX_FILES, nargs="+", default=["fp32"], help="float32 by default")
    parser.add_argument("--task", choices=["encoder"], help="features instead of the model's own task")
    parser.add_argument("--overwrite", action="store_true", help="replace ONNX files that are there")
    parser.set_defaults(run=_run_onnx)


def _run_onnx(arguments: argparse.Namespace) -> int:
    reports = export_onnx(
        arguments.model,
        arguments.output,
        dtypes=arguments.dtype,
        task=arguments.task,
        overwrite=arguments.overwrite,
    )
    print(report_table(reports))
    return 0


def _add_publish(verbs: Any) -> None:
    parser = verbs.add_parser("publish", help="put released checkpoints on the Hub as complete repositories")
    parser.add_argument("sources", nargs="*", help="repository ids or file names of released checkpoints")
    parser.add_argument("--all", action="store_true", help="every released checkpoint")
    parser.add_argument("--namespace", required=True, help="user or organisation to publish under")
    parser.add_argument("--dry-run", action="store_true", help="everything but the upload")
    parser.add_argument("--with-code", action="store_true", help="add the modelling code (trust_remote_code)")
    parser.add_argument("--onnx", choices=ONNX_FILES, nargs="+", default=[], help="add ONNX models")
    parser.add_argument("--work", default="publish_work", help="folder for what is in progress and what was done")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--replace", action="store_true", help="commit onto repositories with other content")
    parser.add_argument("--accept-new-source", action="store_true", help="the source file may have changed")
    parser.add_argument("--keep-folders", action="store_true", help="keep what was uploaded")
    parser.set_defaults(run=_run_publish)


def _run_publish(arguments: argparse.Namespace) -> int:
    results = publish(
        find_recipes(arguments.sources, arguments.all),
        arguments.namespace,
        arguments.work,
        dry_run=arguments.dry_run,
        with_code=arguments.with_code,
        onnx=arguments.onnx,
        private=arguments.private,
        replace_existing=arguments.replace,
        accept_new_source=arguments.accept_new_source,
        keep_folders=arguments.keep_folders,
    )
    print(publication_table(results))
    return 1 if any(result.status == "failed" for result in results) else 0


VERBS = (_add_convert, _add_verify, _add_list, _add_onnx, _add_publish)


def _as_options(message: str, parser: argparse.ArgumentParser) -> str:
    """An error of the library with its keyword arguments spelt as the options of the verb, where it has them.

    `num_attention_heads=` becomes `--num-attention-heads`, `overwrite=True` becomes `--overwrite`, and
    `image_size=[height, width]` becomes `--image-size HEIGHT WIDTH`.
    """
    options = set(re.findall(r"--[\w-]+", parser.format_usage()))

    def spell(match: re.Match[str]) -> str:
        option, value = f"--{match[1].replace('_', '-')}", match[2]
        if option not in options:
            return match[0]
        if value in (None, "True"):
            return option
        is_list = value.startswith("[")
        return f"{option} " + (value.strip("[]").replace(",", "").upper() if is_list else value.strip("'"))

    # A space or a bracket comes first, so that a path such as data/task=3 stays as it is.
    return re.sub(r"(?<=[\s(])(\w+)=(True\b|\[[^\]]*\]|'[^']*'|\d+)?", spell, message)


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; errors that a user can mend are printed without a traceback.

    Returns:
        Exit status: 0, 1 if a comparison fails, 2 for an error.
    """
    parser = argparse.ArgumentParser(prog="python -m conversion", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="verb", dest="verb")
    for add_verb in VERBS:
        add_verb(verbs)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {_as_options(str(error), verbs.choices[arguments.verb])}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
