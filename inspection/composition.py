"""What a table of clips is made of, as text for a terminal."""

import json
from collections import Counter

import numpy as np
import pandas as pd

from inspection.dense import SIGNS, latent_frame_rows, left_out, prompts_without_a_preference, starts_of
from inspection.view import SIDES, View, captioned_clips, outcome, word
from report.text import aligned, histogram
from rl.rewards import effective_sizes

ALL = "all"
UNDECIDED = "every vote answered, and the rule decides nothing"
LONGEST = 72  # characters of a cell in a list


def heading(view: View) -> str:
    """What the folder is, from its manifest."""
    facts = view.facts
    if view.kind == "labels":
        by = f"{facts['source']} ({facts['model']}, {', '.join(facts['model_versions'])})"
        questions = f"rubric {facts['rubric']} {facts['rubric_hash']}, votes: {facts['votes']}"
        shown = f"windows (of {facts['window']} frames, the first of one more)" if view.windows else "clips"
        return f"{view.folder}: {len(view.rows)} {shown} of {view.clips}, labelled by {by}, {questions}"
    if view.kind == "clip_set":
        made = f"{view.folder}: {len(view.rows)} clips of set {facts['set']}, made by {facts['policy']}"
        if begun := facts.get("starts"):
            how = f"each from a clip of {begun['round']} with the last {begun['steps']} solver steps"
            made += f": {len(view.rows) // 2} pairs, {how} (noise {begun['noise']})"
        return made
    origin = ", ".join(f"{key} {facts[key]}" for key in ("round", "source", "reward") if key in facts)
    return f"{view.folder}: {len(view.rows)} rows, {view.kind}, of {origin}"


def composition(view: View) -> str:
    """Counts by category; for labels why clips have none; how p_accept, score, weight or margin are distributed.

    Of a dense set also counts by window, or by latent frame.
    """
    parts = [by_category(view)]
    if view.windows:
        parts.append(by_window(view))
    if view.kind == "dense":
        parts.append(by_latent_frame(view))
    if view.kind == "labels" and (reasons := unlabelled(view)):
        rows = [[str(count), reason] for reason, count in reasons.most_common()]
        parts.append(f"unlabelled, by reason\n{aligned(rows, 'rl')}")
    if view.kind == "labels" and view.rows["p_accept"].isna().all():
        parts.append(f"p_accept: not known of any {view.noun.removesuffix('s')}")
    for column, ends in {"p_accept": (0.0, 1.0), "score": None, "weight": None, "margin": None}.items():
        values = view.rows[column].dropna().to_numpy(float) if column in view.rows else np.empty(0)
        if values.size:
            parts.append(histogram(column, values, *(ends or (values.min(), values.max()))))
    return "\n\n".join(parts)


def by_category(view: View) -> str:
    """A table with a row a category and one for all."""
    rows = [[category, *_counts(view.kind, group)] for category, group in view.rows.groupby("category", sort=True)]
    rows.append([ALL, *_counts(view.kind, view.rows)])
    titles = ["category", *_titles(view)]
    return aligned([titles, *rows], "l" + "r" * (len(titles) - 1))


def by_window(view: View) -> str:
    """A table with a row for each place of a window in its clip."""
    groups = view.rows.groupby(["window", "frames"], sort=True)
    rows = [[str(window), frames, *_counts(view.kind, group)] for (window, frames), group in groups]
    titles = ["window", "frames", *_titles(view)]
    return aligned([titles, *rows], "r" * len(titles))


def by_latent_frame(view: View) -> str:
    """A table with a row for each latent frame: how many pairs prefer which clip in it."""
    (num_frames,) = {sample.num_frames for sample in view.samples.values()}
    titles = ["latent frame", "frames", *(name.replace("_", " ") for name in SIGNS)]
    return aligned([titles, *latent_frame_rows(view.rows, num_frames)], "r" * len(titles))


def unlabelled(view: View) -> Counter[str]:
    """How many clips have no label for which reason: how the errors of their verdicts begin, such as "refused"."""
    assert view.verdicts is not None
    ids = view.rows.loc[view.rows["label"].isna(), "sample_id"]
    errors = view.verdicts.dropna(subset="error").groupby("sample_id")["error"]
    kinds = {clip: "; ".join(sorted({error.split(":")[0] for error in of})) for clip, of in errors}
    return Counter(kinds.get(clip, UNDECIDED) for clip in ids)


def lacking(view: View, most: int) -> str:
    """The prompts without an accepted clip (labels) or without a pair (pairs), each with why and its text.

    Of a dense set also how many pairs have no preference. view: all rows of a folder. most: how many prompts are
    listed. Empty for rows of another kind, and for pairs whose round has no composition.json.
    """
    above = []
    if view.kind == "labels":
        reasons = {str(prompt): _rejections(rows) for prompt, rows in view.rows.groupby("prompt_id", sort=False)}
        found = {prompt: reason for prompt, reason in reasons.items() if reason}
        total, what = len(reasons), f"prompts without an accepted {view.noun.removesuffix('s')}"
    else:
        path = view.folder.parent / "composition.json"
        if view.kind not in SIDES or not path.is_file():
            return ""
        composition = json.loads(path.read_text(encoding="utf-8"))
        total, what = len(composition["pairs_per_prompt"]), "prompts without a pair"
        if view.kind == "dense":
            found = prompts_without_a_preference(composition, starts_of(view.clips))
            above.append(left_out(composition))
        else:
            found = composition["prompts_without_a_pair"]
    texts = {sample.prompt_id: sample.prompt for sample in view.samples.values()}
    rows = [[f"  {prompt}", reason, texts[prompt]] for prompt, reason in list(found.items())[:most]]
    more = [f"  … (--first {len(found)} lists all)"] if len(found) > most else []
    return "\n".join([*above, f"{what}: {len(found)} of {total}", *([aligned(rows, "lll")] if rows else []), *more])


def _rejections(rows: pd.DataFrame) -> str:
    """What the labels of a prompt are, where none is accepted; empty where one is."""
    counts = Counter(rows["label"].map(word))
    return "" if counts["accepted"] else ", ".join(f"{counts[one]} {one}" for one in WORDS if counts[one])


def listed(view: View) -> str:
    """A line a row: which clip or pair it is, its outcome, its prompt."""
    names = [one.heading if one.window else one.sample.sample_id for one in captioned_clips(view)]
    if view.kind in SIDES:
        between = "over" if view.kind == "paired" else "and"
        names = [f"{one} {between} {other}" for one, other in zip(names[::2], names[1::2], strict=True)]
    rows = [[outcome(view, row), row["prompt"]] for row in view.rows.to_dict("records")]
    return aligned([[name, *map(_cut, texts)] for name, texts in zip(names, rows, strict=True)], "lll")


COUNTED = {
    "labels": ("clips", "accepted", "rejected", "unlabelled", "accepted %"),
    "weighted": ("clips", "weight above 0", "mean weight", "effective", "effective a prompt"),
    "paired": ("pairs", "prompts", "clips chosen", "clips rejected", "mean margin"),
    "dense": ("pairs", "prompts", "latent frames", "first better", "second better", "neither"),
    "clip_set": ("clips", "prompts", "of split train", "of split test"),
}


def _titles(view: View) -> list[str]:
    """The titles of COUNTED, the first of which says what a row is."""
    return [view.noun, *COUNTED[view.kind][1:]]


def _counts(kind: str, rows: pd.DataFrame) -> list[str]:
    """The cells of one row under the titles of COUNTED."""
    if kind == "labels":
        accepted, rejected, nulls = [int((rows["label"].map(word) == one).sum()) for one in WORDS]
        share = f"{100 * accepted / (accepted + rejected):.1f}" if accepted + rejected else "–"
        return [str(len(rows)), str(accepted), str(rejected), str(nulls), share]
    if kind == "weighted":
        sizes = effective_sizes(rows["prompt_id"].tolist(), rows["weight"].tolist())
        effective = [f"{sizes[key]:.1f}" for key in ("effective", "effective_per_prompt")]
        return [str(len(rows)), str(sizes["above_0"]), f"{rows['weight'].mean():.3g}", *effective]
    if kind == "paired":
        distinct = [str(rows[column].nunique()) for column in ("prompt_id", "chosen", "rejected")]
        return [str(len(rows)), *distinct, f"{rows['margin'].mean():.3g}"]
    if kind == "dense":
        signs = [int(rows[name].sum()) for name in SIGNS]
        return [str(len(rows)), str(rows["prompt_id"].nunique()), str(sum(signs)), *map(str, signs)]
    splits = [str(int((rows["split"] == split).sum())) for split in ("train", "test")]
    return [str(len(rows)), str(rows["prompt_id"].nunique()), *splits]


WORDS = ("accepted", "rejected", "unlabelled")


def _cut(text: str) -> str:
    """A text in one line, cut where it is too long for a list."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
