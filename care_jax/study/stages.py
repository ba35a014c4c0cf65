"""The stages of a study: train, answer, judge, collect, draw. Each stage keeps what is finished."""

import pathlib
import sys
from collections.abc import Sequence

import yaml

from care_jax import config as configs
from care_jax.errors import UserError
from care_jax.evaluation import tasks
from care_jax.evaluation.answers.snippets import SnippetFilter, keep_best, read_snippets
from care_jax.evaluation.items import Options
from care_jax.study import jobs as processes
from care_jax.study import results, spec, tables
from care_jax.study.jobs import Command
from care_jax.study.spec import Study, StudyRun, StudyTask, System, answers_folder
from care_jax.textfiles import write_lines, write_whole


class Paused(Exception):
    """A judge by files has not answered yet; the message names the files."""


class Failed(RuntimeError):
    """Some commands of the study failed; the message names them and their logs."""


def run(study: Study, *, jobs: int = 1, only: str | None = None) -> pathlib.Path:
    """Runs whatever is not finished yet, writes the tables, and returns the study's folder.

    jobs: commands that run at once. only: the name of a run; then only this run is trained, for a job of its own.
    Raises Interrupted after a signal, Paused if a judge by files has not answered yet, and Failed if a command failed
    (the others are still run).
    """
    folder = pathlib.Path(study.output_dir)
    runs = spec.planned_runs(study)
    if only is not None:
        runs = [each for each in runs if each.name == only]
        if not runs:
            raise UserError(f"--run: the study {study.name} has no run {only!r}; --list prints them")
    check_tasks(study)
    folder.mkdir(parents=True, exist_ok=True)
    if study.train:
        _train(folder, runs, jobs)
    if only is not None:
        return folder
    systems = spec.list_systems(study, runs)
    for task in study.evaluate:
        _answer(folder, task, systems, jobs)
    judged = [task for task in study.evaluate if task.judge is not None]
    missing = [line for task in judged for line in _judge(folder, task, systems, jobs)]
    if missing:
        raise Paused("waiting for the answers of a judge:\n" + "\n".join(missing))
    observations = results.collect(study, runs, systems, folder)
    results.write_parquet(observations, folder / "results.parquet")
    tables.write(study, observations, folder)
    return folder


def check_tasks(study: Study) -> None:
    """Raises UserError for an unknown task, or a task that needs a judge and has none, before anything runs."""
    for task in study.evaluate:
        known, _ = tasks.find(task.task, Options())
        if known.kind == "judged" and task.judge is None:
            raise UserError(f"evaluate: {task.task} is rated by a judge: set `judge: files`, or {{model, base_url}}")


def list_commands(study: Study) -> list[str]:
    """Returns the name and the command of every run that is not finished; each may be started as a job of its own."""
    file = pathlib.Path(study.output_dir) / "study.yaml"
    runs = [each for each in spec.planned_runs(study) if not is_finished(each)]
    return [f"{each.name}\tcare-jax study {file} --run {each.name}" for each in runs]


def write_spec(study: Study) -> None:
    """Writes study.yaml into the study's folder."""
    file = pathlib.Path(study.output_dir) / "study.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


# --- training --------------------------------------------------------------------------------------------------------


def is_finished(run: StudyRun) -> bool:
    """Whether the run's export exists. Raises UserError if it was made with other settings."""
    stored = run.folder / "config.yaml"
    if not (run.folder / "export" / "config.json").is_file() or not stored.is_file():
        return False
    different = configs.refusing_differences(configs.load(stored), run.config)
    different.pop("data.template_date", None)
    if different:
        lines = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in different.items())
        raise UserError(f"{run.folder} holds a finished run with other settings: {lines}. Choose another output_dir")
    return True


def _train(folder: pathlib.Path, runs: Sequence[StudyRun], jobs: int) -> None:
    """Writes the configuration of every run that is not finished, and trains them."""
    (folder / "recipes").mkdir(exist_ok=True)
    commands = []
    for run in runs:
        if not is_finished(run):
            recipe = folder / "recipes" / f"{run.name}.yaml"
            write_whole(recipe, configs.dump(run.config))
            commands.append(Command(run.name, ("train", str(recipe)), folder / "logs" / f"{run.name}.log"))
    finished = len(runs) - len(commands)
    if finished:
        print(f"{finished} of {len(runs)} runs are finished and kept", file=sys.stderr, flush=True)
    _run(folder, commands, jobs)


def _run(folder: pathlib.Path, commands: Sequence[Command], jobs: int) -> None:
    status = processes.run_all(commands, jobs, folder / "compiled")
    failed = [command for command in commands if status[command.name] != 0]
    if failed:
        lines = "\n".join(
            f"care-jax {' '.join(command.arguments)}\n  ended with status {status[command.name]}; "
            f"the last lines of its log {command.log}:\n{processes.tail(command.log)}"
            for command in failed
        )
        raise Failed(f"{len(failed)} of {len(commands)} commands failed:\n{lines}")


# --- answers and judgements ------------------------------------------------------------------------------------------


def _answer(folder: pathlib.Path, task: StudyTask, systems: Sequence[System], jobs: int) -> None:
    commands = []
    for system in systems:
        if system.answers is not None:
            _import_answers(folder, system, task)
        elif not (answers_folder(folder, system, task) / "result.json").is_file():
            out = str(spec.evaluation_folder(folder, system, task))
            arguments = ("evaluate", "--task", task.task, "--model", str(system.model), "--out", out, "--json")
            log = _log(folder, "evaluate", system, task)
            commands.append(Command(f"{system.name}: {task.label}", (*arguments, *_options(task)), log))
    _run(folder, commands, jobs)


def _log(folder: pathlib.Path, command: str, system: System, task: StudyTask) -> pathlib.Path:
    return folder / "logs" / f"{command}_{system.name}_{task.label.replace('/', '_').replace(' ', '_')}.log"


def _options(task: StudyTask) -> list[str]:
    """Returns the options of care-jax evaluate that a task sets."""
    words = []
    for key in ("data", *Options.names(), "temperature", "max_tokens", "chat_template", "n"):
        value = getattr(task, key)
        if key == "columns" and value is not None:
            value = ",".join(f"{name}={column}" for name, column in value.items())
        if value is not None:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return words


def _import_answers(folder: pathlib.Path, system: System, task: StudyTask) -> None:
    """Writes a system's answers from its file: its lines, or snippets joined with the task's questions."""
    answers = system.answers
    out = answers_folder(folder, system, task) / "responses.jsonl"
    if answers is None or out.is_file():
        return
    known, options = tasks.find(
        task.task, Options(query_language=task.query_language, language=task.language, translations=task.translations)
    )
    items = tasks.read(known, task.data, options).items
    wanted = SnippetFilter(answers.best_of, answers.engine, answers.language, task.query_language == "english")
    lines = read_snippets(answers.path, items, system.name, wanted)
    write_lines(out, [{**line, "task": known.name} for line in lines])


def _judge(folder: pathlib.Path, task: StudyTask, systems: Sequence[System], jobs: int) -> list[str]:
    """Has the answers of every system rated; returns the files of a judge by files that are still missing."""
    commands, missing = [], []
    for system in systems:
        answers = answers_folder(folder, system, task) / "responses.jsonl"
        rated = answers.with_name("rated.jsonl")
        if rated.is_file():
            continue
        arguments = ["judge", "--responses", str(answers), "--out", str(rated), "--json"]
        if isinstance(task.judge, spec.JudgeConfig):
            arguments += ["--judge-model", task.judge.model, "--criteria", task.judge.criteria]
            arguments += ["--base-url", task.judge.base_url] if task.judge.base_url else []
            arguments += ["--rubrics", task.judge.rubrics] if task.judge.rubrics else []
            # One cache for the whole study: equal answers of several systems are rated once.
            arguments += ["--cache", str(folder / "judgements.jsonl")] if jobs == 1 else []
        else:
            name = f"{system.name}_{task.label}".replace("/", "_").replace(" ", "_")
            requests, replies = (folder / "requests" / f"{name}{end}" for end in (".jsonl", ".answers.jsonl"))
            if replies.is_file():
                arguments += ["--answers-in", str(replies)]
            else:
                missing.append(f"  {requests} -> {replies}")
                if requests.is_file():
                    continue
                requests.parent.mkdir(parents=True, exist_ok=True)
                arguments = ["judge", "--responses", str(answers), "--requests-out", str(requests)]
        commands.append(Command(f"{system.name}: judge", tuple(arguments), _log(folder, "judge", system, task)))
    _run(folder, commands, 1 if task.judge == "files" else jobs)
    for system in systems:
        if system.answers is not None and system.answers.best_of is not None:
            rated = answers_folder(folder, system, task) / "rated.jsonl"
            if rated.is_file():
                keep_best(rated, rated.with_name("best.jsonl"))
    return missing
