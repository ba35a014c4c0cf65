"""A study from its YAML to its table: train, answer, judge, gather, draw. Each stage keeps what is finished."""

import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from care_jax import config as configs
from care_jax.errors import UserError
from care_jax.evaluation.answers.snippets import SnippetFilter, keep_best, read_snippets
from care_jax.evaluation.items import Options
from care_jax.evaluation.tasks import registry
from care_jax.study import jobs, results, tables
from care_jax.study.jobs import Command
from care_jax.study.spec import RunOf, Study, System, TaskConfig, place_of, runs, systems, task_folder
from care_jax.textfiles import write_lines, write_whole


class Paused(Exception):
    """Judging by files waits for the answers; the message names the files."""


class Failed(RuntimeError):
    """Some commands of the study failed; the message names them and their logs."""


def run(study: Study, *, at_once: int = 1, only: str | None = None) -> pathlib.Path:
    """Runs whatever is not yet finished, then writes the tables; returns the study's folder.

    only: train this one run and nothing else (one launch job each). Raises jobs.Stopped after a signal, Paused where a
    judge by files has not answered yet, Failed where a command failed (the others are still run).
    """
    folder = pathlib.Path(study.output_dir)
    planned = runs(study)
    if only is not None:
        planned = [one for one in planned if one.name == only]
        if not planned:
            raise UserError(f"--run: the study {study.name} has no run {only!r}; --list prints them")
    check_tasks(study)
    folder.mkdir(parents=True, exist_ok=True)
    if study.train:
        _train(folder, planned, at_once)
    if only is not None:
        return folder
    who = systems(study, planned)
    for task in study.evaluate:
        _answer(folder, task, who, at_once)
    waiting: list[str] = []
    for task in study.evaluate:
        if task.judge is not None:
            waiting += _judge(folder, task, who, at_once)
    if waiting:
        raise Paused("answers are awaited:\n" + "\n".join(waiting))
    found = results.gather(study, planned, who, folder)
    results.write_parquet(found, folder / "results.parquet")
    tables.write(study, found, folder)
    return folder


def check_tasks(study: Study) -> None:
    """Names of tasks, and that what a judge must rate has one, before anything runs."""
    for task in study.evaluate:
        known, _ = registry.find(task.task, Options())
        if known.kind == "judged" and task.judge is None:
            raise UserError(f"evaluate: {task.task} is rated by a judge: give `judge: files`, or {{model, base_url}}")


def train_commands(planned: Sequence[RunOf], folder: pathlib.Path) -> list[Command]:
    """One command a run that is not finished; writes the runs' configurations."""
    commands = []
    for one in planned:
        if finished(one):
            continue
        recipe = folder / "recipes" / f"{one.name}.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        write_whole(recipe, configs.dump(one.config))
        commands.append(Command(one.name, ("train", str(recipe)), folder / "logs" / f"{one.name}.log"))
    return commands


def finished(one: RunOf) -> bool:
    """Whether the run's export is there. Raises UserError where it was made with other settings."""
    stored = one.folder / "config.yaml"
    if not (one.folder / "export" / "config.json").is_file() or not stored.is_file():
        return False
    different = configs.numeric_differences(configs.load(stored), one.config)
    different.pop("data.template_date", None)
    if different:
        shown = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in different.items())
        raise UserError(f"{one.folder} holds a finished run with other settings: {shown}. Choose another output_dir")
    return True


def _train(folder: pathlib.Path, planned: Sequence[RunOf], at_once: int) -> None:
    commands = train_commands(planned, folder)
    kept = len(planned) - len(commands)
    if kept:
        print(f"{kept} of {len(planned)} runs are finished and kept", file=sys.stderr, flush=True)
    _run(commands, at_once, folder)


def _run(commands: Sequence[Command], at_once: int, folder: pathlib.Path) -> None:
    status = jobs.run_all(commands, at_once, folder / "compiled")
    wrong = [command for command in commands if status[command.name] != 0]
    if wrong:
        told = "\n".join(
            f"{one.shown}\n  ended with {status[one.name]}; its log {one.log} ends:\n{jobs.tail(one.log)}"
            for one in wrong
        )
        raise Failed(f"{len(wrong)} of {len(commands)} commands failed:\n{told}")


# --- answers and judgements ------------------------------------------------------------------------------------------


def _answer(folder: pathlib.Path, task: TaskConfig, who: Sequence[System], at_once: int) -> None:
    commands = []
    for system in who:
        place = place_of(folder, system, task)
        if system.answers is not None:
            _bring(system, task, place)
        elif not (place / task_folder(task) / "result.json").is_file():
            words = ["evaluate", "--task", task.task, "--model", str(system.model), "--out", str(place), "--json"]
            commands.append(
                Command(f"{system.name}: {task.label}", (*words, *_options(task)), _log(folder, system, task))
            )
    _run(commands, at_once, folder)


def _log(folder: pathlib.Path, system: System, task: TaskConfig, what: str = "evaluate") -> pathlib.Path:
    return folder / "logs" / f"{what}_{system.name}_{task.label.replace('/', '_').replace(' ', '_')}.log"


def _options(task: TaskConfig) -> list[str]:
    words = []
    given = (
        *("data", "translations", "language", "prompt", "limit", "num_fewshot", "fewshot"),
        *("temperature", "max_tokens", "chat_template"),
    )
    for key in given:
        value = getattr(task, key)
        if value is not None:
            words += [f"--{key.replace('_', '-')}", str(value)]
    if task.columns is not None:
        words += ["--columns", ",".join(f"{name}={column}" for name, column in task.columns.items())]
    words += ["--query-language", task.query_language, "--method", task.method, "--mode", task.mode, "--n", str(task.n)]
    return words


def _bring(system: System, task: TaskConfig, place: pathlib.Path) -> None:
    """The answers of a file as those of a system: snippets, joined with the task's questions, or lines as they are."""
    given = system.answers
    out = place / task_folder(task) / "responses.jsonl"
    if given is None or out.is_file():
        return
    known, options = registry.find(
        task.task, Options(query_language=task.query_language, language=task.language, translations=task.translations)
    )
    items = registry.read(known, task.data, options).items
    english = task.query_language == "english"
    wanted = SnippetFilter(given.best_of, given.engine, given.language, english)
    lines = read_snippets(given.path, items, system.name, wanted)
    write_lines(out, [{**line, "task": known.name} for line in lines])


def _judge(folder: pathlib.Path, task: TaskConfig, who: Sequence[System], at_once: int) -> list[str]:
    """Rated answers of every system; returns what a judge by files is waited for."""
    commands, waiting = [], []
    for system in who:
        answers = place_of(folder, system, task) / task_folder(task) / "responses.jsonl"
        rated = answers.with_name("rated.jsonl")
        if rated.is_file():
            continue
        words: list[str] = ["judge", "--responses", str(answers), "--out", str(rated), "--json"]
        if task.judge == "files":
            name = f"{system.name}_{task.label}".replace("/", "_").replace(" ", "_")
            requests = folder / "requests" / f"{name}.jsonl"
            replies = folder / "requests" / f"{name}.answers.jsonl"
            if not replies.is_file():
                waiting.append(f"  {requests} -> {replies}")
                if requests.is_file():
                    continue
                requests.parent.mkdir(parents=True, exist_ok=True)
                words = ["judge", "--responses", str(answers), "--requests-out", str(requests)]
            else:
                words += ["--answers-in", str(replies)]
        elif task.judge is not None:
            judge: Any = task.judge
            words += ["--judge-model", judge.model, "--criteria", judge.criteria]
            words += ["--base-url", judge.base_url] if judge.base_url else []
            words += ["--rubrics", judge.rubrics] if judge.rubrics else []
            # One cache for the whole study: what several systems answered alike is asked once.
            words += ["--cache", str(folder / "judgements.jsonl")] if at_once == 1 else []
        commands.append(Command(f"{system.name}: judge", tuple(words), _log(folder, system, task, "judge")))
    _run(commands, 1 if task.judge == "files" else at_once, folder)
    for system in who:
        if system.answers is not None and system.answers.best_of is not None:
            rated = place_of(folder, system, task) / task_folder(task) / "rated.jsonl"
            if rated.is_file():
                keep_best(rated, rated.with_name("best.jsonl"))
    return waiting


def list_commands(study: Study) -> list[str]:
    """The commands that train the runs that are not finished, for whoever launches each as a job of its own."""
    folder = pathlib.Path(study.output_dir)
    planned = [one for one in runs(study) if not finished(one)]
    return [f"{one.name}\tcare-jax study {os.fspath(folder / 'study.yaml')} --run {one.name}" for one in planned]


def keep_spec(study: Study) -> None:
    """study.yaml in the study's folder: what it was made from. Raises UserError where another study lies there."""
    import yaml

    folder = pathlib.Path(study.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(
        folder / "study.yaml", yaml.safe_dump(json.loads(study.model_dump_json()), sort_keys=False, allow_unicode=True)
    )
