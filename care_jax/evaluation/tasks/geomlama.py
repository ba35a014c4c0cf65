"""GeoMLAMA: statements with a gap, for which several of the candidates are right."""

from care_jax.data.rows.table import open_table, require_fields
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import Answer, MatchedAnswers
from care_jax.evaluation.items import Item, Options, Outcome, TaskItems, mean_score, select_items, summarize
from care_jax.evaluation.tasks.multiple_choice import check_logps

_ALIASES = {
    "question": ("Corresponding Questions", "question"),
    "prompt": ("Prompt",),
    "answer": ("Ans", "answer"),
    "choices": ("Candidate Ans", "candidates"),
    "country": ("country",),
}


def read_geomlama(path: str, options: Options) -> TaskItems:
    """Reads gd_prompt_{lang}.tsv; blank rows are skipped."""
    items = []
    for row, values in open_table(path, _ALIASES, options.columns):
        if not any(str(value or "").strip() for value in (row.value or {}).values()):
            continue
        require_fields(row, values, "prompt", "answer", "choices")
        prompt = str(values["prompt"]).strip()
        choices, right = (_split(values[key]) for key in ("choices", "answer"))
        unknown = [answer for answer in right if answer not in choices]
        if unknown or not right:
            raise UserError(f"{row.place}, Ans: {unknown or 'nothing'} is not among the candidates {choices}")
        if "<mask>" not in prompt and "[MASK]" not in prompt:
            raise UserError(f"{row.place}, Prompt: no <mask> in {prompt!r}")
        question = str(values.get("question") or "").strip() or prompt
        items.append(
            Item(
                id=str(row.number),
                question=question,
                prompt=f"{question}\nChoose the {len(right)} best of these: {', '.join(choices)}.\nAnswer:",
                groups={"country": str(values["country"])} if values.get("country") else {},
                choices=tuple(prompt.replace("<mask>", name).replace("[MASK]", name) for name in choices),
                letters=tuple(choices),
                right=tuple(choices.index(answer) for answer in dict.fromkeys(right)),
                standalone=True,
            )
        )
    return TaskItems(select_items(items, options, path))


def _split(value: object) -> list[str]:
    return [part.strip() for part in str(value).replace("，", ",").split(",") if part.strip()]


def score_geomlama(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Returns the mean overlap: the share of the n right candidates among the n that are ranked highest."""
    scores = []
    for item in task_items.items:
        answers = matched.answers.get(item.id, [])
        rankings = [ranking for answer in answers if (ranking := _rank(item, answer)) is not None]
        count = len(item.right)
        values = [len(set(ranking[:count]) & set(item.right)) / count for ranking in rankings]
        scores.append(mean_score(item, values, len(answers)))
    return summarize(scores, "top-n overlap")


def _rank(item: Item, answer: Answer) -> list[int] | None:
    """Returns the candidates' indices, by log-probability or in the order in which a text names them, or None."""
    if (logps := answer.logps) is not None:
        check_logps(item, logps)
        return sorted(range(len(item.choices)), key=lambda index: -logps[index])
    text = (answer.response or "").casefold()
    offsets = [(text.find(name.casefold()), index) for index, name in enumerate(item.letters)]
    return [index for offset, index in sorted(offsets) if offset >= 0] or None
