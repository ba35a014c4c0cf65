"""BLEnD: the formats, the quirks, the scores of the real files, also computed by hand, and multiple choice."""

import json
import re

import pytest

from care_jax.errors import UserError
from care_jax.evaluation import tasks
from care_jax.evaluation.answers.responses import Answer
from care_jax.evaluation.items import Options
from care_jax.evaluation.tasks import blend


def entry(answers=(), *, idk=0, no_answer=0, not_applicable=0, **more):
    votes = [{"answers": list(local), "en_answers": list(english), "count": count} for local, english, count in answers]
    idks = {"idk": idk, "no-answer": no_answer, "not-applicable": not_applicable, "我不太懂体育": 9}
    return {"question": "问", "en_question": "Q", "annotations": votes, "idks": idks, **more}


def write(folder, name, value):
    path = folder / name
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def answer(id_, text, **row):
    return Answer(row, id_, None, text, None, None)


def score(path, answers, name="blend_sa", **options):
    task, task_options = tasks.find(name, Options(**options))
    return tasks.score(task, tasks.read(task, path, task_options), answers, task_options)[0]


def test_questions_are_excluded_as_by_the_authors(tmp_path):
    votes = [(["茶"], ["tea"], 3)]
    path = write(
        tmp_path,
        "China_data.json",
        {
            "kept": entry(votes, idk=4, no_answer=2),
            "unanswerable": entry(votes, no_answer=1, not_applicable=2),
            "unknown": entry(votes, idk=5),
            "none": entry(),
        },
    )
    task_items = blend.read_short(path, Options())
    assert [item.id for item in task_items.items] == ["kept"]
    assert task_items.excluded == {"unanswerable": 1, "unknown": 1, "no_annotations": 1}


def test_scores_by_hand(tmp_path):
    """Votes 4 and 1: the second answer is worth a quarter; local answers are searched before English ones."""
    votes = [(["米饭"], ["rice"], 4), (["绿茶", "茶"], ["green tea"], 1)]
    data = {name: entry(votes) for name in ("local", "second", "english", "wrong", "missing", "hyphen")}
    path = write(tmp_path, "China_data.json", data)
    result = score(
        path,
        [
            answer("local", "我们吃米饭。"),
            answer("second", "喝茶"),
            answer("english", "They eat RICE."),
            answer("wrong", "面条"),
            answer("hyphen", "Green-tea"),
        ],
    )
    assert (result["n"], result["missing"], result["failed"]) == (6, 1, 0)
    assert result["score"] == pytest.approx(100 * 4 / 6)
    assert result["scores"]["SEM-W(lite)"] == pytest.approx(100 * (1 + 0.25 + 1 + 0.25) / 6)
    assert result["metric"] == "SEM-B(lite)"
    assert result["by"]["country"] == {"China": pytest.approx(100 * 4 / 6)}


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        (
            "China_prompts.csv",
            "id,English\ninst-4,Say {q}\n",
            ["columns id, English,", "columns id, Translation"],
        ),
        ("China_prompts.csv", "English,Translation\na,b\n", ["the columns English, Translation", "expected", " id, "]),
        ("China_questions.csv", "Topic\nfood\n", ["the columns Topic", "expected rows with the columns ID"]),
        ("China_questions.csv", "", ["0 rows with the columns none"]),
    ],
)
def test_a_file_next_to_the_data_without_its_columns(tmp_path, name, text, parts):
    path = write(tmp_path, "China_data.json", {"a": entry([(["茶"], ["tea"], 3)])})
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        blend.read_short(path, Options())
    assert all(part in str(error.value) for part in [name, *parts])


def test_an_english_speaking_country_has_english_answers_only(tmp_path):
    path = write(tmp_path, "US_data.json", {"a": entry([(["zzz"], ["pie"], 1)])})
    assert score(path, [answer("a", "zzz")])["score"] == 0
    assert score(path, [answer("a", "apple pie")])["score"] == 100


def test_several_responses_to_an_item_are_averaged(tmp_path):
    path = write(tmp_path, "US_data.json", {"a": entry([([], ["pie"], 1)])})
    assert score(path, [answer("a", "pie"), answer("a", "cake")])["score"] == 50


@pytest.mark.parametrize(
    ("answer", "response", "parity", "strict"),
    [
        ("tea", "steak", True, False),  # within a word
        ("green-tea", "green tea", True, True),
        ("green tea", "green-tea", True, True),
        ("milk tea", "tea with milk", True, True),  # word by word
        ("!", "anything", True, False),  # no word at all is found in any response
        ("rice", "noodles", False, False),
    ],
)
def test_matching_and_the_quirks_that_strict_does_not_have(answer, response, parity, strict):
    assert blend.contains_answer(answer, response, "English") is parity
    assert blend.contains_answer(answer, response, "English", strict=True) is strict


def test_arabic_is_compared_without_vowel_signs_and_forms():
    assert blend.contains_answer("الكُسْكُسي", "كسكسى لذيذ", "Arabic")
    assert not blend.contains_answer("شاي", "قهوة", "Arabic")


def test_responses_are_cleaned_as_the_script_does():
    prompt = "阅读问题。\n\n问题：早餐吃什么？\n答案："
    assert blend.clean_response(f"{prompt}豆浆。", prompt) == "豆浆"
    assert blend.clean_response("答案： 豆浆、油条。", prompt) == "豆浆,油条"
    assert blend.clean_response("Note: Soup.", prompt) == "note: soup"  # a word that the prompt has not stays


def test_rows_of_the_hub_and_files_of_the_repository_give_the_same_items(tmp_path):
    rows = [{"ID": "a", **entry([(["茶"], ["tea"], 2)])}, {"ID": "b", **entry([(["饭"], ["rice"], 2)])}]
    rows[0]["idks"]["other"] = {"x": 1}
    listed = blend.read_short(write(tmp_path, "China_data.json", rows), Options())
    as_dict = {row["ID"]: row for row in rows}
    mapped = blend.read_short(write(tmp_path, "China_data.json", as_dict), Options())
    assert listed == mapped
    older = {"a": {**as_dict["a"], "aggregated_answers": as_dict["a"]["annotations"]}}
    del older["a"]["annotations"]
    assert blend.read_short(write(tmp_path, "China_data.json", older), Options()).items[0] == listed.items[0]


def test_a_file_in_another_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="no `idks`"):
        blend.read_short(write(tmp_path, "China_data.json", {"a": {"question": "x"}}), Options())


# --- the real files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("country", "prompt"), [("China", "阅读以下问题"), ("Algeria", "")])
def test_the_real_files_equal_a_computation_by_hand(shared, country, prompt):
    """The first answer of every third item, 'zzz' for every second of the rest; written out without the library."""
    path = shared / "data" / "blend" / f"{country}_data.sample.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    answers, valid, hits, weight = [], 0, 0, 0.0
    for number, (id_, row) in enumerate(data.items()):
        idks = row["idks"]
        if idks["no-answer"] + idks["not-applicable"] >= 3 or idks["idk"] >= 5 or not row["annotations"]:
            continue
        valid += 1
        last = row["annotations"][-1]
        if number % 3 == 0:
            said = (last["answers"] or last["en_answers"])[0].lower().strip(".")
            answers.append(answer(id_, said))
            count = next(
                vote["count"]
                for vote in row["annotations"]
                for one in (*vote["answers"], *vote["en_answers"])
                if any(
                    form in said for form in (one.lower(), one.lower().replace("-", " "), one.lower().replace(" ", "-"))
                )
            )
            hits, weight = hits + 1, weight + count / row["annotations"][0]["count"]
        elif number % 2:
            answers.append(answer(id_, "zzz"))
    result = score(str(path), answers)
    assert (result["n"], result["excluded"]) == (valid, len(data) - valid)
    assert result["missing"] == valid - len(answers)
    assert result["score"] == pytest.approx(100 * hits / valid)
    assert result["scores"]["SEM-W(lite)"] == pytest.approx(100 * weight / valid)
    item = blend.read_short(str(path), Options()).items[0]
    assert item.prompt.startswith(prompt)
    assert item.question in item.prompt
    assert item.groups["topic"] == "Food"


def test_prompts_are_those_of_the_file_in_the_language_of_the_query(shared):
    path = str(shared / "data" / "blend" / "China_data.sample.json")
    english = blend.read_short(path, Options(query_language="english", prompt="pers-3")).items[0]
    assert english.prompt.startswith("You are a person from China")
    assert re.search(r"snack for preschool kids", english.prompt)
    with pytest.raises(UserError, match=r"no 'pers-9' .*it has inst-1"):
        blend.read_short(path, Options(prompt="pers-9"))


# --- multiple-choice questions ---------------------------------------------------------------------------------------


def choices_file(tmp_path):
    rows = [
        ("a_0", "a", "China", {"A": "golf", "B": "tennis"}, "B"),
        ("a_1", "a", "China", {"A": "rugby", "B": "tennis", "C": "golf"}, "B"),
        ("b_0", "b", "US", {"A": "dummy", "B": "Tea"}, "A"),
    ]
    lines = ["MCQID,ID,country,prompt,choices,choice_countries,answer_idx"]
    for mcqid, id_, country, options, right in rows:
        quoted = json.dumps(options).replace('"', '""')
        lines.append(f'{mcqid},{id_},{country},"Pick one of {mcqid}","{quoted}",{{}},{right}')
    path = tmp_path / "mc_questions_file-1.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_multiple_choice_micro_and_per_id(tmp_path):
    path = choices_file(tmp_path)
    answers = [answer("a_0", '{"answer_choice":"B"}'), answer("a_1", "The answer is B"), answer("b_0", "A")]
    for mode, micro, macro in (("parity", 2 / 3, (0.5 + 1) / 2), ("strict", 1.0, 1.0)):
        result = score(path, answers, "blend_mc", mode=mode)
        assert result["score"] == pytest.approx(micro)
        assert result["scores"]["acc per ID (macro)"] == pytest.approx(macro)
        assert result["failed"] == (1 if mode == "parity" else 0)  # 'T' is no option
    assert result["by"]["country"] == {"China": 1.0, "US": 1.0}
