"""A run's folder: whose it is, starting it over, and whether what lies in it is what the run wrote."""

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.checkpoint import Checkpoints
from experiments.harness.errors import Damaged, Unreadable, UserError
from experiments.harness.held import Held
from experiments.harness.identity import (
    command_line,
    config_hash,
    difference,
    git_commit,
    kind_of_numbers,
    other_data,
    settings,
    software,
)
from experiments.harness.storage import (
    extent,
    names_in,
    opened,
    read,
    read_json,
    read_sealed,
    remove,
    sealed,
    write_atomically,
)

CONFIG, METRICS, TIMINGS, SUMMARY, DONE = "config.json", "metrics.jsonl", "timings.jsonl", "summary.json", "DONE"
CHECKPOINTS, EVENTS = "checkpoints", "events.out.tfevents.*"
DIVERGED = "DIVERGED"  # {"updates": N}: the run ended there, as `Run.check_finite` found
FAILED, OUTPUT = "FAILED", "output.log"  # of a sweep

_SAVED = "saved"  # in config.json: whether any checkpoint was ever saved; earlier versions do not say

Extents = Mapping[str, tuple[int, int | None]]
"""How long a run's files are, in bytes, and their CRC-32, where it is known; by name."""


class Prepared(NamedTuple):
    """What `prepare` found."""

    about: dict[str, Any]  # config.json, as it is to be
    done: bool  # whether the run had ended well
    told: list[str]  # sentences for whoever started it


def prepare(
    held: Held,
    identity: Mapping[str, Any],
    digest: str,
    *,
    fresh: bool,
    size: Mapping[str, Any],
    data: Mapping[str, str],
) -> Prepared:
    """Makes the folder this run's, new or to be continued; it no longer says that the run has failed.

    Args:
        held: the run's folder.
        identity: the experiment's name and its plain configuration.
        digest: the hash of `identity`.
        fresh: delete what an earlier run of the same configuration left here.
        size: how long the run is, to be written down: `total` of `unit`.
        data: the fingerprints of what it reads from files, by name.

    Returns:
        What is known of the run. It tells of software, settings or code that changed since the run began or last went
        on, which `note_resumed` writes down.

    Raises:
        UserError: the folder holds a run of another configuration, which is left as it is, `fresh` or not; or one that
            can't go on as it began, or has changed since it ended.
        Unreadable: what it holds can't be read.
        OSError: it can't be written.
    """
    folder = held.folder
    now = {"versions": software(), "git_commit": git_commit(), "settings": settings()}
    recorded = _read_config(folder, fresh)
    if recorded is not None:
        change = difference({name: recorded.get(name) for name in identity}, identity)
        if change and recorded.get("hash") == digest and not fresh:
            raise UserError(_config_damaged(folder, change))
        if change:
            raise UserError(f"{folder / CONFIG} is of another run: {change}; move it away, or give another --out")
    names_in(folder / CHECKPOINTS)  # they can be looked at: else nothing is done
    done, told = (False, []) if fresh else _ended(folder, recorded)
    if recorded is not None and not fresh:
        _refuse_changes(folder, recorded, now["settings"], data, done)
    (held.at / FAILED).unlink(missing_ok=True)
    if recorded is None or fresh:
        about = {**identity, "hash": digest, **size, **now, "data": dict(data)}
        about |= {"command": command_line(), "started": _time_of_day()}
        if fresh:
            _clear(held, recorded)
        if not (done or _has_records(folder)):  # else config.json is all that was lost
            about[_SAVED] = False
        _write_config(held, about)
        return Prepared(about, done, told)
    resumed = recorded.get("resumed", [])
    last = resumed[-1] if resumed else recorded
    known = [name for name in now if name in last]  # earlier versions wrote down less
    change = difference({name: last[name] for name in known}, {name: now[name] for name in known})
    if change:
        sentence = f"{folder} was begun with other software, settings or code, so the last bits may differ: {change}"
        told = [*told, sentence]
    if done:
        return Prepared(recorded, done, told)
    about = {**recorded, "data": {**recorded.get("data", {}), **data}}
    if change:
        about["resumed"] = [*resumed, {**now, "started": _time_of_day()}]
    return Prepared(about, done, told)


def may_begin(folder: Path, about: Mapping[str, Any], passed_over: list[str]) -> None:
    """Makes sure that a run of which no checkpoint was found never had one: what it has recorded is then cut away.

    Args:
        folder: the run's folder.
        about: its config.json.
        passed_over: what is wrong with what lies in `checkpoints`.

    Raises:
        UserError: it had one, or may have had one.
    """
    if about.get(_SAVED, _has_records(folder)):
        found = f"{'was saved' if about.get(_SAVED) else 'has records'}, and there is no whole checkpoint"
        raise UserError(
            f"{folder} {'; '.join([found, *passed_over])}; nothing was changed: put {CHECKPOINTS}/ back (is its disk "
            "mounted?), or start over with --fresh"
        )


def note_resumed(held: Held, about: dict[str, Any], saved: bool) -> None:
    """Writes down that a run goes on, and with what; it has not diverged. `saved`: it does so from a checkpoint."""
    if saved:
        about[_SAVED] = True  # if the run was killed just before it said so
    _write_config(held, about)
    (held.at / DIVERGED).unlink(missing_ok=True)


def note_saved(held: Held, about: dict[str, Any]) -> None:
    """Writes down, once, that a checkpoint was saved: where none is found, the run no longer begins again by itself."""
    if not about.get(_SAVED):
        about[_SAVED] = True
        _write_config(held, about)


def end(held: Held, content: Mapping[str, Any], files: Extents) -> None:
    """Writes down that the run has ended well.

    Args:
        held: its folder.
        content: which run that is.
        files: all that it leaves.
    """
    write_atomically(held.at / DONE, sealed({**content, "files": dict(files)}) + "\n")


def summary(folder: Path) -> dict[str, Any]:
    """What a run left as its result.

    Raises:
        FileNotFoundError: it has not ended.
        UserError: it is damaged, or can't be read.
    """
    try:
        found = read_json(folder / SUMMARY)
    except Damaged as error:
        raise UserError(_since_it_ended(folder, SUMMARY, str(error))) from None
    if found is None:
        raise FileNotFoundError(f"{folder / SUMMARY} is not there")
    return found


def records(folder: Path, about: Mapping[str, Any]) -> bytes:
    """The bytes of a run's metrics.jsonl, once its files are what they were when it ended, or was last saved.

    Args:
        folder: the run's folder; the run may be going on.
        about: its config.json.

    Raises:
        Damaged: they are not.
        Unreadable: one of them can't be read.
    """
    if about.get("hash") not in (None, config_hash(about["experiment"], about["config"])):
        raise Damaged(f"{CONFIG} is damaged: its settings are not those of its hash")
    while True:
        files, ended = _extents(folder, about)
        data = read(folder / METRICS) or b""
        size, checksum = files.get(METRICS, (0, 0))
        part = data if ended and files else data[:size]
        how = _difference(METRICS, [len(part), zlib.crc32(part)], (size, checksum))
        if not how and SUMMARY in files:
            how = changed(folder, SUMMARY, files[SUMMARY], whole=True)
        if not how:
            return data
        if _extents(folder, about) == (files, ended):  # else it was saved, or started over, meanwhile
            raise Damaged(how)


def extents_in(marks: Mapping[str, int]) -> Extents:
    """How long the record files were when a checkpoint was saved. Earlier versions did not save their checksums."""
    return {
        METRICS: (marks["metrics_bytes"], marks.get("metrics_crc32")),
        TIMINGS: (marks["timings_bytes"], marks.get("timings_crc32")),
    }


def changed(folder: Path, name: str, expected: tuple[int, int | None], whole: bool = False) -> str | None:
    """How a file differs from what the run wrote, in words; None where it does not.

    Args:
        folder: the run's folder.
        name: the file's.
        expected: how long it was, and its CRC-32, where that is known.
        whole: whether it must not be longer now.

    Raises:
        Unreadable: it can't be read.
    """
    try:
        return _difference(name, extent(folder / name, None if whole else expected[0]), expected)
    except FileNotFoundError:
        return f"{name} is missing" if expected[0] else None
    except Damaged as error:
        return str(error)


def _difference(name: str, found: list[int], expected: tuple[int, int | None]) -> str | None:
    if found[0] != expected[0]:
        return f"{name} has {found[0]} bytes, but had {expected[0]} when it was saved"
    if expected[1] is not None and found[1] != expected[1]:
        return f"{name} is not what was saved"
    return None


def _extents(folder: Path, about: Mapping[str, Any] | None) -> tuple[Extents, bool]:
    """What a run's files must be, and whether it has ended. Nothing is known of those of earlier versions' runs.

    Raises:
        Damaged: DONE is.
        Unreadable: DONE is.
    """
    done = read(folder / DONE)
    if done is None:
        try:
            marks = Checkpoints(folder / CHECKPOINTS, {}).newest_marks()
        except Unreadable:  # the records can be read without their checkpoints
            marks = None
        return (extents_in(marks) if marks else {}), False
    if not done.strip() and _SAVED not in (about or {}):
        return {}, True
    content = read_sealed(folder / DONE) or {"files": {}}
    return {name: (size, checksum) for name, (size, checksum) in content["files"].items()}, True


def _ended(folder: Path, about: Mapping[str, Any] | None) -> tuple[bool, list[str]]:
    """Whether the run has ended well, and what there is to tell of it.

    Raises:
        UserError: its results are not what they were then.
    """
    try:
        files, ended = _extents(folder, about)
    except Damaged as error:
        raise UserError(_since_it_ended(folder, DONE, str(error))) from None
    if not ended:
        return False, []
    differ = {name: how for name, expected in files.items() if (how := changed(folder, name, expected, whole=True))}
    told = differ.pop(TIMINGS, "")
    for name, how in differ.items():
        raise UserError(_since_it_ended(folder, name, how))
    return True, [f"{folder} has ended, and since then {told}"] if told else []


def _since_it_ended(folder: Path, name: str, how: str) -> str:
    again = f"remove {DONE}, and the same command ends it again from its last checkpoint"
    if name == METRICS:
        again = "start over with --fresh"
    return f"{folder} has ended, but {how}; {'' if name == DONE else f'put {name} back from a copy, or '}{again}"


def _refuse_changes(
    folder: Path, recorded: Mapping[str, Any], here: Mapping[str, Any], data: Mapping[str, str], done: bool
) -> None:
    """Raises UserError where the run would not be the one that began here."""
    change = other_data(recorded.get("data", {}), data)
    if change:
        raise UserError(f"{folder} was begun with other data: {change}; put that back, or give another --out")
    there = kind_of_numbers(recorded.get("settings", {}))
    for name, value in there.items():
        if value != here[name] and not done:
            raise UserError(
                f"{folder} was begun with {name}={value}, and here it is {here[name]}, which makes other numbers; set "
                f"{name}={value}, or give another --out"
            )


def _read_config(folder: Path, fresh: bool) -> dict[str, Any] | None:
    try:
        found = read_json(folder / CONFIG)
        if found is None:
            return None
        resumed = found.get("resumed", [])
        if not isinstance(resumed, list) or not all(isinstance(each, dict) for each in resumed):
            raise Damaged("'resumed' is no list of objects")
        for name in ("versions", "settings", "data"):
            if not isinstance(found.get(name, {}), dict):
                raise Damaged(f"'{name}' is no object")
    except Damaged as error:
        if fresh:
            return None
        raise UserError(_config_damaged(folder, str(error))) from None
    return found


def _config_damaged(folder: Path, how: str) -> str:
    return f"{folder / CONFIG} is damaged ({how}); move it away, and the same command goes on"


def _write_config(held: Held, about: Mapping[str, Any]) -> None:
    write_atomically(held.at / CONFIG, json.dumps(about, indent=2, allow_nan=False) + "\n")


def _clear(held: Held, recorded: Mapping[str, Any] | None) -> None:
    """Deletes what a run left. Killed in the middle, it leaves something that goes on, or begins again."""
    (held.at / DONE).unlink(missing_ok=True)  # first: a half-cleared folder must not look finished
    if recorded is not None:
        _write_config(held, {**recorded, _SAVED: False})
    checkpoints = held.at / CHECKPOINTS
    Checkpoints(checkpoints, {}).keep_only(set())
    if not checkpoints.is_symlink():  # to another disk, as may be
        remove(checkpoints)
    for path in (*(held.at / name for name in (METRICS, TIMINGS, SUMMARY)), *held.at.glob(EVENTS)):
        remove(path)


def _has_records(folder: Path) -> bool:
    """Whether a run has recorded anything. Raises UserError where its metrics.jsonl is no file, or can't be read."""
    try:
        with opened(folder / METRICS) as file:
            return os.fstat(file.fileno()).st_size > 0
    except FileNotFoundError:
        return False
    except Damaged as error:
        raise UserError(f"{folder}: {error}; move it away") from None


def _time_of_day() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
