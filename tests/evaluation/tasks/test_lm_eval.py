"""INCLUDE's prompts against lm-evaluation-harness's own, from its installed task files and a local dataset file."""

import json
import os
import subprocess
import sys

import pytest

from care_jax.evaluation import tasks
from care_jax.evaluation.items import Options

PEER = """
import json, pathlib, sys
import lm_eval, yaml
from lm_eval.api.task import ConfigurableTask

yaml.SafeLoader.add_constructor("!function", lambda loader, node: None)
shots = int(sys.argv[4])
variant = "few_shot_en" if shots else "default"
folder = pathlib.Path(lm_eval.__file__).parent / "tasks" / "include" / variant / sys.argv[1]
own = yaml.safe_load((folder / sys.argv[2]).read_text())
config = {**yaml.safe_load((folder / own.pop("include")).read_text()), **own}
files = {"test": sys.argv[3], "validation": sys.argv[5]}
config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
config |= {"fewshot_split": "validation", "fewshot_config": {"sampler": "first_n"}}
config.pop("process_docs", None)
task = ConfigurableTask(config=config)
task.set_config("num_fewshot", shots)
out = []
for number, doc in enumerate(task.test_docs()):
    context = task.fewshot_context(doc, shots)
    made = task.construct_requests(doc, context, doc_id=number, metadata=(task.config.task, number, 1))
    out.append({"context": context, "arguments": [list(one.args) for one in made], "target": task.doc_to_target(doc)})
print("OUT" + json.dumps(out))
"""
# Awkward on purpose: white space at both ends, braces, several lines.
QUESTIONS = [
    ("  光速是多少？ ", ["一", " 二", "三 ", "{四}"]),
    ("以下哪项正确：\n(1) 水 {H2O}\n(2) 火", ["(1)", "(2)", "两者", "都不是"]),
]


EXAMPLES = [
    ("水的化学式？", ["H2O", "CO2", "O2", "N2"]),
    (" 2+2 = ? ", ["3", "4", "5", "6"]),
    ("天空", ["蓝", "绿", "红", "黑"]),
]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize(
    ("language", "file", "domain"),
    [
        ("Chinese", "include_base_44_chinese_stem.yaml", "STEM"),
        ("Arabic", "include_base_44_arabic_arts_humanities.yaml", "Arts & Humanities"),
        ("Japanese", "include_base_44_japanese_driving_license.yaml", "Driving License"),
    ],
)
def test_prompts_are_lm_evals_text(tmp_path, language, file, domain, shots):
    python = os.environ.get("CARE_JAX_PARITY_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import lm_eval"], capture_output=True, check=False).returncode:
        pytest.skip("no lm_eval here: name a Python that has it by CARE_JAX_PARITY_PYTHON")
    paths = []
    for name, questions in (("test", QUESTIONS), ("validation", EXAMPLES)):
        rows = [
            {"language": language, "domain": domain, "question": question, "answer": number % 4}
            | {f"option_{letter}": one for letter, one in zip("abcd", options)}
            for number, (question, options) in enumerate(questions)
        ]
        paths.append(tmp_path / f"{name}.jsonl")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        paths[-1].write_text(text, encoding="utf-8")
    path, examples = map(str, paths)
    done = subprocess.run(
        [python, "-c", PEER, language, file, path, str(shots), examples], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected = json.loads(done.stdout.split("OUT")[-1])
    task, options = tasks.find("include", Options(num_fewshot=shots, fewshot=examples))
    items = tasks.read(task, path, options).items
    assert len(items) == len(expected) == len(QUESTIONS)
    for item, peer in zip(items, expected):
        assert item.prompt == peer["context"]
        assert [[item.prompt, choice] for choice in item.choices] == peer["arguments"]
        assert item.right == (peer["target"],)
