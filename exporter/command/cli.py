"""The command line: a thin skin over Job and run. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from exporter import __version__
from exporter.command.clean import clean
from exporter.command.flags import FORMAT, VERBOSE, WAIT, JobCommand, given
from exporter.command.shell import SHELLS
from exporter.command.shell import shell_init as shell_text
from exporter.errors import EXIT_INTERRUPTED, EXIT_JOB, ExporterError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="exporter")
def cli() -> None:
    """Take a trained model to every machine that must run it, and prove what that costs.

    \b
    exporter run -m tiny --target onnx -o out            the model that exporter ships, offline
    exporter run -m DIR --adapter LORA --target onnx:int8-weight --target onnx:fp32 -o out
    exporter run --config job.yaml

    Exit status: 0 all built and within its gates; 2 the job is wrong; 3 a gate failed; 4 an artifact was not built.
    """


@cli.command(cls=JobCommand)
@click.option("--config", type=click.Path(path_type=Path), help="A YAML file with the same keys; flags win over it.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the whole job and what it would do.")
@FORMAT
@VERBOSE
def run(config: Path | None, dry_run: bool, form: str, verbose: bool, **flags: Any) -> None:
    """Merge, export, measure and report: the main job.

    \b
    exporter run -m all-minilm-l6-v2 --target onnx:all -o out/minilm
    exporter run -m ./llama --adapter ./lora --target onnx:int8-weight --max-ppl-ratio 1.01 -o out/llama
    """
    from exporter.command.screen import Screen
    from exporter.command.show import print_next, print_plan, print_result
    from exporter.job import Job, load_job

    job = load_job(Job, given(flags), config)
    with Screen(verbose) as screen:
        if dry_run:
            from exporter.pipeline.plan import dry_plan

            described = dry_plan(job, screen.progress)
        else:
            from exporter.pipeline.run import run as run_job

            report = run_job(job, screen.progress, screen.failed, screen.step)
    if dry_run:
        print_plan(described, form)
        return
    print_result(report, job.output, form)
    if form == "human":
        print_next(job)
    sys.exit(report["exit_status"])


@cli.command(cls=JobCommand)
@click.option("--config", type=click.Path(path_type=Path), help="A YAML file with the same keys; flags win over it.")
@FORMAT
@VERBOSE
def merge(config: Path | None, form: str, verbose: bool, **flags: Any) -> None:
    """Merge adapters into a checkpoint and prove it: OUT is an ordinary Hugging Face folder. No export.

    \b
    exporter merge -m ./llama --adapter ./lora -o merged
    exporter merge -m ./llama-70b --adapter ./lora --merge streaming -o merged        larger than memory
    exporter merge -m ./llama --adapter ./a=0.7 --adapter ./b=0.3 -o merged           their exact weighted sum
    """
    from exporter.command.screen import Screen
    from exporter.command.show import print_merge
    from exporter.job import MergeJob, load_job
    from exporter.pipeline.merging import merge_only

    job = load_job(MergeJob, given(flags), config)
    with Screen(verbose) as screen:
        record = merge_only(job, screen.progress, screen.step)
    print_merge(record, job.output, form)


@cli.command(cls=JobCommand)
@click.option("--config", type=click.Path(path_type=Path), help="A YAML file with the same keys; flags win over it.")
@FORMAT
@VERBOSE
def compress(config: Path | None, form: str, verbose: bool, **flags: Any) -> None:
    """Merge, prune and distill a checkpoint: OUT is an ordinary Hugging Face folder, for any target. No export.

    \b
    exporter compress -m ./llama --prune width:0.2 --distill-steps 200 -o smaller
    exporter run -m smaller -t onnx:int8-weight -o out/smaller                  measured against itself
    """
    from exporter.command.screen import Screen
    from exporter.command.show import print_compressed
    from exporter.job import CompressJob, load_job
    from exporter.pipeline.compressing import compress_only

    job = load_job(CompressJob, given(flags), config)
    with Screen(verbose) as screen:
        record = compress_only(job, screen.progress, screen.step)
    print_compressed(record, job.output, form)


@cli.command(cls=JobCommand)
@click.option("--config", type=click.Path(path_type=Path), help="A YAML file with the same keys; flags win over it.")
@click.option("--policy-out", type=click.Path(path_type=Path), required=True, help="The YAML file that is written.")
@FORMAT
@VERBOSE
def calibrate(config: Path | None, policy_out: Path, form: str, verbose: bool, **flags: Any) -> None:
    """Choose what each linear layer gets for one target, and write it as a policy that can be edited.

    \b
    exporter calibrate -m ./llama -t onnx:int8-static --calib-text own.txt --policy-out policy.yaml
    exporter run -m ./llama -t onnx:int8-static --policy policy.yaml -o out/llama
    """
    from exporter.cache import using
    from exporter.command.screen import Screen
    from exporter.command.show import print_policy
    from exporter.job import Job, load_job
    from exporter.pipeline.choosing import make_policy

    job = load_job(Job, given(flags) | {"output": policy_out.parent}, config)
    with Screen(verbose) as screen, using():
        record = make_policy(job, policy_out, screen.progress, screen.step)
    print_policy(record, policy_out, form)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), help="Threads of every engine. Default: as in the job.")
@click.option("--device", help="What the engines run on: auto, cpu, cuda or cuda:N. Default: as in the job.")
@FORMAT
@VERBOSE
@WAIT
def bench(folder: Path, threads: int | None, device: str | None, form: str, verbose: bool, wait: bool) -> None:
    """Measure an output FOLDER again, on this machine, from its stored reference (torch is not needed)."""
    from exporter.command.screen import Screen
    from exporter.command.show import print_result
    from exporter.pipeline.again import bench_again

    with Screen(verbose) as screen:
        report = bench_again(folder, threads, screen.progress, screen.failed, wait, screen.step, device)
    print_result(report, folder, form)
    sys.exit(report["exit_status"])


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@FORMAT
@WAIT
def report(folder: Path, form: str, wait: bool) -> None:
    """Render an output FOLDER's report.html, report.md and junit.xml again, and print its table."""
    from exporter.command.screen import Screen
    from exporter.command.show import print_result
    from exporter.report.files import read_report, write_report
    from exporter.store import output_lock

    read_report(folder)  # what is no output folder is not locked
    with Screen(False) as screen, output_lock(folder.resolve(), wait, screen.progress):
        stored = read_report(folder)
        write_report(stored, folder)
    print_result(stored, folder, form)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@FORMAT
def verify(folder: Path, form: str) -> None:
    """Check every artifact below an output FOLDER: its files against their hashes, and that all are of one model."""
    from exporter.command.show import print_damage
    from exporter.report.verifying import verified

    broken = verified(folder)
    if not broken:
        raise click.UsageError(f"{folder} holds no artifacts")
    print_damage(broken, form)
    sys.exit(EXIT_JOB if any(broken.values()) else 0)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@FORMAT
def inspect(file: Path, form: str) -> None:
    """Print what is in a model FILE: inputs, outputs, states, operators, and the weights' bytes by type.

    \b
    exporter inspect model.onnx
    exporter inspect out/coreml/coreml-fp16     an artifact's folder: the .onnx, .gguf, .mlpackage or .tflite in it
    """
    from exporter.command.inspect import print_inspected

    print_inspected(file, form)


@cli.command()
@click.argument("target", required=False)
@FORMAT
def targets(target: str | None, form: str) -> None:
    """List every target with its precisions and gates, whether it can run here (and why not), and the recipes.

    \b
    exporter targets gguf         one TARGET's precisions, gates, options and an example
    """
    from exporter.command.targets import print_one_target, print_targets

    if target is None:
        print_targets(form)
    else:
        print_one_target(target, form)


@cli.command()
@FORMAT
def doctor(form: str) -> None:
    """Print versions, CPU features, threads, memory, GPU and known-bad pairs of packages."""
    from exporter.command.show import print_doctor

    print_doctor(form)


@cli.command()
@click.argument("target")
@click.option("--source", type=click.Path(path_type=Path), help="A file brought here, where there is no network.")
def fetch(target: str, source: Path | None) -> None:
    """Fill the cache with what a TARGET needs besides packages, so that it works --offline: gguf's converter."""
    from exporter.command.fetch import fill

    click.echo(fill(target, source))


cli.add_command(clean)


@cli.command()
@click.argument("what", type=click.Choice(["job", "report"]), default="job")
def schema(what: str) -> None:
    """Print the JSON Schema of the job file, for editors (yaml-language-server: $schema=…), or of report.json."""
    from exporter.command.schema import schema_text

    click.echo(schema_text(what))


@cli.command("shell-init")
@click.argument("shell", type=click.Choice(SHELLS))
def shell_init(shell: str) -> None:
    """Make `export run …` work in a SHELL whose builtin has that name; all else stays the builtin's.

    \b
    eval "$(exporter shell-init bash)"        in ~/.bashrc
    eval "$(exporter shell-init zsh)"         in ~/.zshrc

    A variable that is called like a command is exported with its value (export run=1) or with `builtin export run`.
    """
    click.echo(shell_text(shell, cli.commands), nl=False)


def main() -> NoReturn:
    """The entry point of both `exporter` and `export`: errors become one line and an exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(_status(lambda: cli.main(standalone_mode=False)))
    except ExporterError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: what was unfinished has been removed", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_JOB)


def _status(call: Callable[[], Any]) -> int:
    try:
        result = call()
    except OSError as error:
        from exporter.errors import BuildError
        from exporter.store import disk_full

        if not disk_full(error):
            raise

        raise BuildError(f"the disk is full ({error.filename or error}); free some space and run again") from error
    return result if isinstance(result, int) else 0


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
