"""The command line of an experiment: its configuration's fields as options, the shared options, one line an error."""

import contextlib
import dataclasses
import difflib
import functools
import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from experiments.harness.bounds import SEEDS, at_least, check_bounds, expanded, options_of, unread
from experiments.harness.errors import DiskFull, NonFinite, RunStopped, UserError, is_full_disk, unknown
from experiments.harness.grid import axes
from experiments.harness.identity import plain
from experiments.harness.processes import in_first, join


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What every experiment takes beside its configuration. None of it changes what a run is, so none is hashed."""

    seeds: Annotated[int, at_least(1, most=SEEDS)] = 1
    """How many seeds to run: --seed, --seed + 1, ..."""
    out: Path = Path("runs")
    """The folder of all runs."""
    fresh: bool = False
    """Start over, instead of resuming or returning at once from what is there."""
    wait: bool = False
    """Where another process has a run, wait for its end, instead of stopping."""


@dataclasses.dataclass(frozen=True)
class DeviceOptions(RunOptions):
    """What an experiment takes besides, if a run of it can be spread over several devices."""

    devices: int | None = None
    """Devices that share each batch; if not given, one, or all that several processes have. The result differs by
    rounding only; a run may go on with another number."""
    coordinator: str = ""
    """Run together with other processes, one a host or one a GPU, each started by this command: host:port of process 0;
    auto: under SLURM or Open MPI, which tell all. Process 0 writes the run's folder."""
    processes: int | None = None
    """With --coordinator host:port: how many processes there are."""
    process: int | None = None
    """With --coordinator host:port: which of them this is, from 0."""


_LONGEST_WORD, _ENDS_OF_A_WORD, _LONGEST_LINE = 200, 40, 500  # of an error; what is longer is shown by its ends
_OF_A_PROCESS = ("out", "process", "profile")
"""The options that processes which run together need not have in common."""


def run_command(
    study: Callable[[Any, Any], object],
    config_type: type,
    argv: Sequence[str],
    *,
    name: str,
    description: str | None,
    presets: Mapping[str, Any] | None = None,
    options_type: type[RunOptions] = RunOptions,
) -> int:
    """Runs an experiment from the command line, one seed after another.

    A seed whose loss is not finite ends alone: the other seeds still run, and the exit code tells.

    Args:
        study: called as `study(config, options)` once a seed, with that seed in `config.seed`.
        config_type: a frozen dataclass with defaults for all fields and a field `seed: int`.
        argv: the arguments after the experiment's name.
        name: the experiment's name.
        description: shown by `--help`: the experiment's docstring.
        presets: configurations by name, for `--preset`; other options then change single fields. Where no preset is
            named, they change the one called "default", if there is one.
        options_type: of `options`: what the command line takes beside the configuration.

    Returns:
        The exit code: 0; 1 where the run stopped (NaN, full disk); 2 for bad input; 130 or 143 after a signal.
    """

    def run_all_seeds() -> int:
        config, options = parse_command(
            config_type, argv, name=name, description=description, presets=presets, options_type=options_type
        )
        if isinstance(options, DeviceOptions):
            join(options.coordinator, options.processes, options.process)
            ours = dict.fromkeys(_OF_A_PROCESS)
            in_first(lambda: None, same={**plain(config), **plain(options), **ours})
        seeds = range(config.seed, config.seed + options.seeds)
        return each_alone(functools.partial(study, dataclasses.replace(config, seed=seed), options) for seed in seeds)

    return exit_code_of(run_all_seeds)


def each_alone(runs: Iterable[Callable[[], object]]) -> int:
    """Runs one after another; one that raises NonFinite is told of, and the others still run. Returns the exit code."""
    exit_code = 0
    for run in runs:
        try:
            run()
        except NonFinite as error:
            print_error(error)
            exit_code = error.exit_code
    return exit_code


def parse_command(
    config_type: type,
    argv: Sequence[str],
    *,
    name: str,
    description: str | None,
    presets: Mapping[str, Any] | None = None,
    options_type: type[RunOptions] = RunOptions,
    variants: Callable[[Any], Iterable[Any]] = lambda config: [config],
) -> tuple[Any, Any]:
    """The configuration and the shared options that a command line means; see `run_command` for the arguments.

    Options that were typed and that the configuration does not read are told of, in a line each.

    Args:
        variants: the configurations of the runs that the command makes of its own, where that is more than one.

    Raises:
        UserError: there is no such preset; an argument does not parse, has two values, or one that its field can't
            have; or the seeds asked for do not exist.
        SystemExit: 0 after `--help`.
    """
    import tyro  # here, so that listing the experiments does not pay for it

    typed = axes(argv)
    for option, given in typed.items():
        if len(given) > 1:
            both = " and ".join(" ".join(words) for words in given[:2])
            raise UserError(f"{both}: a run has one {option}; python -m experiments sweep {name} ... runs all")
    presets = presets or {}
    preset = _preset_in(argv)
    if preset is not None and preset not in presets:
        raise unknown("a preset", preset, presets, option="--preset")
    preset_help = f"A named configuration to start from: {', '.join(presets) or 'this experiment has none'}."
    command_type = dataclasses.make_dataclass(
        "Command",
        [
            ("config", Annotated[config_type, tyro.conf.arg(name="")]),
            ("options", Annotated[options_type, tyro.conf.arg(name="")]),
            ("preset", Annotated[str | None, tyro.conf.arg(metavar="NAME", help=preset_help)]),
        ],
        frozen=True,
    )
    start = presets[preset] if preset is not None else presets.get("default", config_type())
    default = command_type(start, options_type(), None)
    command = _parsed(command_type, argv, name=name, description=description, default=default)
    most = SEEDS - command.options.seeds
    if command.config.seed > most:
        raise UserError(f"--seed {command.config.seed}: beyond {SEEDS - 1} seeds repeat; the nearest is {most}")
    _tell_unread(config_type, list(variants(command.config)), typed)
    _tell_unread(options_type, [command], typed)
    return command.config, command.options


def parse_options(
    options_type: Any, argv: Sequence[str], *, name: str, description: str | None, default: Any = None
) -> Any:
    """What a command line means, as an instance of a dataclass.

    Args:
        options_type: the dataclass, or it annotated for tyro.
        argv: the arguments after the command's name.
        name: the command's name.
        description: shown by `--help`.
        default: an instance with the defaults, for a dataclass without its own.

    Options that were typed and that the others make useless are told of, in a line each.

    Returns:
        The instance; a leading ~ of its paths has become the home folder.

    Raises:
        UserError: an argument does not parse, or is none that its field can have (see `experiments.harness.bounds`).
        SystemExit: 0 after `--help`.
    """
    meant = _parsed(options_type, argv, name=name, description=description, default=default)
    _tell_unread(type(meant), [meant], axes(argv))
    return meant


def _parsed(options_type: Any, argv: Sequence[str], *, name: str, description: str | None, default: Any) -> Any:
    """See `parse_options`."""
    import tyro  # here, so that listing the experiments does not pay for it

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            meant = tyro.cli(
                options_type,
                args=list(argv),
                default=tyro.MISSING_NONPROP if default is None else default,
                prog=f"python -m experiments {name}",
                description=description,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_in_a_line(said.getvalue(), type(default) if default is not None else options_type)) from None
    check_bounds(meant)
    return expanded(meant)


def exit_code_of(command: Callable[[], int | None]) -> int:
    """The exit code of `command()`; an expected end is told in a line on stderr.

    Expected are bad input, a file or folder that cannot be read or written, and a stopped run. KeyboardInterrupt, of a
    second Ctrl-C, is for `python -m experiments` itself.
    """
    try:
        return command() or 0
    except (UserError, RunStopped) as error:
        print_error(error)
        return error.exit_code
    except OSError as error:
        if is_full_disk(error):
            print_error(DiskFull(f"{error.filename or 'what was being written'}: {error.strerror}"))
            return DiskFull.exit_code
        if error.filename is None:
            raise
        print_error(UserError(f"{error.filename}: {error.strerror}"))
        return UserError.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def print_error(error: Exception) -> None:
    """Prints an error's message as one line on stderr, in which no word but a path is longer than a line."""
    words = (_cut(word) for word in str(error).split())
    print(f"error: {' '.join(words)}", file=sys.stderr)


def _cut(word: str) -> str:
    too_long = len(word) > _LONGEST_WORD and "/" not in word
    return f"{word[:_ENDS_OF_A_WORD]}...{word[-_ENDS_OF_A_WORD:]}" if too_long else word


def _tell_unread(options_type: type, configs: Sequence[Any], typed: Iterable[str]) -> None:
    for line in unread(options_type, configs, typed):
        _tell(line)


@functools.cache  # once for all cells of a grid
def _tell(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def _in_a_line(message: str, options_type: Any) -> str:
    """The parser's message as one line: without its frame, its heading, the help of the option, and the last part,
    which points to --help; and of options that are like one that does not exist, the nearest."""
    lines = [line.strip("│| ") for line in message.splitlines()[1:]]
    parts = [" ".join(part.split()) for part in re.split(r"^[─-]{9,}$", "\n".join(lines), flags=re.MULTILINE)]
    told = [part for part in parts[:-1] or parts if part and not part.startswith("Argument helptext")]
    if unknown := re.match(r"Unrecognized options: (-[^\s,=]+)", told[0]):
        return _unknown_option(unknown[1], options_type)
    said = re.sub(r"^Error parsing (config\S*: )?", "", "; ".join(told))
    # In its frame, the parser breaks long words.
    return said if len(said) <= _LONGEST_LINE else f"{said[: _LONGEST_LINE // 2]} ... {said[-_LONGEST_LINE // 2 :]}"


def _unknown_option(name: str, options_type: Any) -> str:
    import tyro

    options = options_of(get_args(options_type)[0] if get_args(options_type) else options_type)
    known = [option.name for option in options if tyro.conf.Suppress not in option.notes]
    near = difflib.get_close_matches(name.replace("_", "-"), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "--help shows those there are"
    return f"'{name}' is not an option; {hint}"


def _preset_in(argv: Sequence[str]) -> str | None:
    # Looked up before the parser runs: the preset gives the defaults that the parser needs.
    for position, argument in enumerate(argv):
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset=")
        following = argv[position + 1 : position + 2]
        if argument == "--preset" and following and not following[0].startswith("--"):
            return following[0]
    return None
