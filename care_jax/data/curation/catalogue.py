"""The datasets that the paper compares with, and the generic preference sets: what each is good for here, and how.

status: `preferences` and `sft` train; `evaluation` is a task of its own; `reader` reads as questions only; `out` is
left out, and the note says why. Not verified: nobody here could see the files, so `columns` has to name their fields,
and docs/datasets.md has a map to begin with.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dataset:
    """One row of the table. reader: the reader's name, or the evaluation task's; '' where there is none."""

    name: str
    status: str
    reader: str
    licence: str
    fields: str
    where: str = ""
    note: str = ""
    verified: bool = True


DATASETS: tuple[Dataset, ...] = (
    Dataset(
        "CARE",
        "preferences",
        "care",
        "MIT (current card); CC-BY-NC-4.0 (older card)",
        "question, answer, response, human_rating, source, cul_type, associated_culture, translated_question",
        "geyang627/care",
        "its evaluation items: reader care_eval",
    ),
    Dataset("FORK", "evaluation", "fork", "CC-BY-4.0", "Question, Option A, Option B, Answer Key, Country, Dimension"),
    Dataset(
        "CulturalBench",
        "evaluation",
        "culturalbench",
        "CC-BY-4.0",
        "prompt_question, prompt_option_a..d, answer, country",
    ),
    Dataset(
        "GeoMLAMA", "evaluation", "geomlama", "not stated", "Prompt, Corresponding Questions, Ans, Candidate Ans (TSV)"
    ),
    Dataset(
        "BLEnD",
        "evaluation",
        "blend_sa, blend_mc",
        "CC-BY-SA-4.0",
        "question, en_question, annotations, idks",
        "nayeon212/BLEnD",
        "its questions with their commonest answer: reader blend",
    ),
    Dataset(
        "INCLUDE", "evaluation", "include", "Apache-2.0", "question, choices or option_a..d, answer, domain, language"
    ),
    Dataset(
        "CAMeL",
        "evaluation",
        "cloze",
        "check its repository",
        "masked prompts and entities, from its xlsx as CSV",
        verified=False,
    ),
    Dataset(
        "CANDLE",
        "reader",
        "care_eval",
        "check its card",
        "subject, facet, assertion",
        note="assertions, which become questions with a reference and no answer",
        verified=False,
    ),
    Dataset(
        "LLM-GLOBE", "evaluation", "llm_globe", "check its repository", "survey items on a scale of 1-7", verified=False
    ),
    Dataset(
        "CulturalTeaming",
        "evaluation",
        "culturalbench",
        "Apache-2.0",
        "as CulturalBench, of which it is an earlier release",
    ),
    Dataset(
        "SHADES", "evaluation", "statement_pairs", "gated", "stereotyped and contrasting statements", verified=False
    ),
    Dataset(
        "JMMMU", "out", "", "check its card", "question, options, answer, images", note="the questions need images"
    ),
    Dataset(
        "Aya",
        "sft",
        "sft",
        "Apache-2.0",
        "inputs, targets, language, language_code, annotation_type",
        "CohereForAI/aya_dataset",
    ),
    Dataset("CIDAR", "sft", "sft", "CC-BY-NC-4.0", "instruction, output", "arbml/CIDAR"),
    Dataset(
        "Cameleval", "preferences", "rated", "check its card", "prompts, answers of models, judgements", verified=False
    ),
    Dataset(
        "PRISM",
        "preferences",
        "prism",
        "human text CC-BY, model text CC-BY-NC",
        "conversation_history: turn, role, content, score, if_chosen, model_name",
        "HannahRoseKirk/prism-alignment",
        "name: conversations",
    ),
    Dataset("Palm", "sft", "sft", "check its card", "instruction, output, country", "UBC-NLP/palm"),
    Dataset("CultureInstruct", "sft", "sft", "check its card", "instruction and response", verified=False),
    Dataset(
        "CultureBank",
        "sft",
        "sft",
        "MIT",
        "eval_question, eval_whole_desc, cultural group, topic, eval_persona",
        "SALT-NLP/CultureBank",
        "split: tiktok or reddit; a descriptor answers each question",
    ),
    Dataset("CulturePark, CultureLLM", "sft", "sft", "terms of the World Values Survey", "messages: role, content"),
    Dataset(
        "UltraFeedback",
        "preferences",
        "ultrafeedback",
        "MIT",
        "instruction, completions: model, response, overall_score",
        "openbmb/UltraFeedback",
        "a first release had 2,628 scores of 10 in error: pin revision 40b436560ca8",
    ),
    Dataset(
        "UltraFeedback binarized",
        "preferences",
        "preferences",
        "MIT",
        "prompt, chosen, rejected (messages), score_chosen, score_rejected",
        "HuggingFaceH4/ultrafeedback_binarized",
        "split: train_prefs",
    ),
    Dataset("HH-RLHF", "preferences", "hh_rlhf", "MIT", "chosen, rejected (dialogues)", "Anthropic/hh-rlhf"),
    Dataset(
        "OpenAssistant",
        "preferences",
        "oasst",
        "Apache-2.0",
        "message_id, parent_id, text, role, lang, rank, deleted, review_result",
        "OpenAssistant/oasst1",
        "cultures: [ar, zh, ja] selects by language",
    ),
    Dataset(
        "CValues-Comparison",
        "preferences",
        "cvalues",
        "Apache-2.0",
        "prompt, pos_resp, neg_resp, pos_type, neg_type",
        note="from ModelScope: damo/CValues-Comparison",
    ),
    Dataset(
        "HelpSteer", "preferences", "helpsteer", "CC-BY-4.0", "prompt, response, helpfulness (0-4)", "nvidia/HelpSteer"
    ),
)


def list_text() -> str:
    """The table as text: what `care-jax data list` prints, the readers first."""
    from care_jax.data import readers

    lines = ["readers (reader: NAME)"]
    width = max(map(len, readers.READERS))
    lines += [f"  {spec.name:<{width}}  {spec.summary}" for spec in readers.READERS.values()]
    lines += ["", "datasets"]
    for data in DATASETS:
        kind = "task" if data.status == "evaluation" else "reader"
        status = data.status if data.verified else f"{data.status}; fields unverified"
        lines.append(f"  {data.name} [{status}]" + (f" {kind} {data.reader}" if data.reader else ""))
        lines.append(f"      fields: {data.fields}")
        about = [f"licence: {data.licence}", data.where, data.note]
        lines.append("      " + "; ".join(part for part in about if part))
    return "\n".join(lines) + "\n"
