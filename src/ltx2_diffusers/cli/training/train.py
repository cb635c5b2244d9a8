"""`ltx2 train`: train an adapter or a whole model as a configuration says, or say what that would cost."""

import argparse
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

_CONFIG_SUFFIXES = (".yaml", ".yml")
_EXAMPLES = """examples:
  # a LoRA from what `ltx2 data process` made of clips, without a file
  ltx2 train --model-path LTX-2-diffusers --preprocessed-data-root clips --steps 2000 --rank 32

  # from a file, with two values changed
  ltx2 train lora.yaml optimization.learning_rate=2e-4 validation.interval=null

  # what it will need: memory, time, data; nothing is loaded
  ltx2 train lora.yaml --dry-run --gpu rtx4090

  # the whole configuration, to begin a file with
  ltx2 train --model-path LTX-2-diffusers --preprocessed-data-root clips --print-config > lora.yaml

  # go on after an interruption
  ltx2 train lora.yaml --resume

  # on several devices
  accelerate launch -m ltx2_diffusers.cli.main train lora.yaml

Configuration files of the reference trainer load as they are. Values are written as in YAML. All options below are keys
of the file too, and win over it; a key that stands in two sections is typed with its section.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows what an option takes once, not after each of its names."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        names = [name for name in action.option_strings if not name.startswith("--no-")]
        takes = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(names)} {takes}".strip()


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser; its options are read off the schema when they are needed."""
    parser = commands.add_parser(
        "train",
        usage="ltx2 train [CONFIG] [section.key=value ...] [options]",
        help="train a LoRA or a whole model",
        description="Train a LoRA or a whole model.",
        epilog=_EXAMPLES,
        formatter_class=_Formatter,
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    try:
        from ...training.config_files import fields
        from ...training.forecast import GPUS
    except ImportError as error:
        parser.error(str(error))
    parser.add_argument(
        "words", nargs="*", metavar="CONFIG", help="YAML file, and values on top of it as section.key=value"
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration, and end")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what memory and time it needs, check data, and end"
    )
    parser.add_argument("--gpu", choices=GPUS, help="of --dry-run: the device whose memory and speed to compare with")
    parser.add_argument("--device-tflops", type=float, metavar="NUMBER", help="of --dry-run: speed of another device")
    parser.add_argument(
        "--disable-progress-bars", action="store_true", help="log a line now and then in place of a bar"
    )
    rows = fields()
    unique = {key for key, count in Counter(row.key for row in rows).items() if count == 1}
    groups: dict[str, Any] = {}
    for row in rows:
        if row.section not in groups:
            groups[row.section] = parser.add_argument_group(row.section or "run")
        short = [f"--{row.key.replace('_', '-')}"] if row.key in unique else []
        names = dict.fromkeys([*short, f"--{row.name}"])
        groups[row.section].add_argument(*names, dest=row.name, help=_help(row), **_parsing(row))


def _help(row: Any) -> str:
    only = f"; for {', '.join(row.strategies)}" if row.strategies and " for " not in row.default else ""
    return f"{row.description.rstrip('.')} (default: {row.default}{only})".replace("%", "%%")


def _parsing(row: Any) -> dict[str, Any]:
    """How the value of a key is typed."""
    if row.kinds == {bool} and "null" not in row.type:
        return {"action": argparse.BooleanOptionalAction, "default": argparse.SUPPRESS}
    settings: dict[str, Any] = {"metavar": row.type, "default": argparse.SUPPRESS}
    if row.name == "checkpoints.resume":
        return {**settings, "nargs": "?", "const": "latest", "metavar": "latest|PATH"}
    return {**settings, "nargs": "+", "metavar": row.entry_type} if row.is_list else settings


def run(options: argparse.Namespace) -> int:
    """Train, or print what was asked for."""
    from ...training.config_files import config_text

    config = read_config(options)
    if options.print_config:
        print(config_text(config), end="")
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: print(f"note: {message}", file=sys.stderr)
        if options.dry_run:
            print(_forecast(config, options))
            return 0
        return _train(config)


def _train(config: Any) -> int:
    from ...adapters.file import LORA_WEIGHT_NAME
    from ...training.checkpoints import latest_checkpoint
    from ...training.trainer import LTX2Trainer

    is_first = os.environ.get("RANK", "0") == "0"
    if is_first and _leaves_sound(config):
        print("note: the data have sound, which this run does not train; --with-audio trains it", file=sys.stderr)
    try:
        checkpoint, stats = LTX2Trainer(config).train()
    except KeyboardInterrupt:
        last = latest_checkpoint(Path(config.output_dir) / "checkpoints")
        hint = f"; --resume goes on from {_near(last)}" if last is not None else ", before the first checkpoint"
        print(f"ltx2 train: interrupted{hint}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        # Of the run itself, such as losses that are not finite; other kinds of it are faults.
        if type(error) is not RuntimeError:
            raise
        print(f"ltx2 train: {error}", file=sys.stderr)
        return 1
    if is_first:
        is_lora = config.model.training_mode == "lora"
        steps = f"{config.optimization.steps} steps in {stats['total_time_seconds']:.0f} s"
        made = Path(config.output_dir) / LORA_WEIGHT_NAME if is_lora else checkpoint
        what = "adapter" if is_lora else "transformer"
        print(f"{_near(made)}: {what} after {steps}, {stats['samples_per_second']:.2f} samples/s")
    return 0


def _leaves_sound(config: Any) -> bool:
    """Whether the data have sound that `with_audio` would train."""
    from ...data.dataset import precomputed_folder

    strategy = config.training_strategy
    if getattr(strategy, "with_audio", True):
        return False
    return (precomputed_folder(config.data.preprocessed_data_root) / strategy.audio_latents_dir).is_dir()


def _near(path: Path) -> Path:
    """The path as one types it here, if it lies below the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _forecast(config: Any, options: argparse.Namespace) -> str:
    import torch

    from ...training.forecast import forecast
    from ...training.trained.models import check_settings
    from ..loading import best_device

    check_settings(config, torch.device(best_device()))
    return forecast(config).text(options.gpu, options.device_tflops)


def read_config(options: argparse.Namespace) -> Any:
    """The configuration that the command line asks for."""
    from ...training.config_files import fields, load_config

    given, words = vars(options), list(options.words)
    resume = str(given.get("checkpoints.resume"))
    if resume.endswith(_CONFIG_SUFFIXES):
        # `--resume config.yaml`: no checkpoint has such a name.
        words, given["checkpoints.resume"] = [resume, *words], "latest"
    elif "=" in resume and not Path(resume).exists():
        # `--resume section.key=value`
        words, given["checkpoints.resume"] = [*words, resume], "latest"
    has_file = bool(words) and ("=" not in words[0] or Path(words[0]).is_file())
    file = words.pop(0) if has_file else None
    changes = {row.name: given[row.name] for row in fields() if row.name in given}
    if options.disable_progress_bars:
        changes["tracking.progress_bar"] = False
    return load_config(file, words, changes)
