"""Words of the exams: sentences and headings about points, passing and the papers' table, in English and Japanese."""

from __future__ import annotations

TEXT: dict[str, tuple[str, str]] = {
    # (English, Japanese) as in labels.py
    "x_reference": ("{level} {outcome}.", "{level}：{outcome}。"),
    "x_same": ("{level} {outcome}, as {reference} does.", "{level}：{outcome}（{reference}と同じ）。"),
    "x_other": ("{level} {outcome}; {reference} {before}.", "{level}：{outcome}。{reference}は{before}。"),
    "x_passes": ("passes {years}", "{years}に合格"),
    "x_fails": ("fails {years}", "{years}は不合格"),
    "x_open": ("may pass or fail {years}", "{years}は合否が決まらない"),
    "x_joiner": ("; ", "、"),
    "x_and": (", ", "・"),
    "x_years": ("{first}–{last}", "{first}～{last}年"),
    "x_year": ("{first}", "{first}年"),
    "w_newer_metadata": (
        "{tasks}: the questions were public when {models} came out ({date}), so the model may have been trained on "
        "them, and what it would get in a new exam may be less.",
        "{tasks}：{models}の公開（{date}）より前に問題が公開されているため、学習に使われた可能性があります。"
        "新しい試験での得点はこれより低いかもしれません。",
    ),
    "w_newer_architecture": (
        "{tasks}: the questions were public before the first {architecture} model ({date}), so {models} may have been "
        "trained on them, and what they would get in a new exam may be less.",
        "{tasks}：最初の{architecture}モデル（{date}）より前に問題が公開されているため、{models}の学習に使われた可能性が"
        "あります。新しい試験での得点はこれより低いかもしれません。",
    ),
}

PAGE: dict[str, tuple[str, str]] = {
    "h_papers": ("Beside the published numbers", "論文の数値との比較"),
    "papers_note": (
        "Asked and scored as {paper}: zero-shot, greedy, 256 tokens; Gestalt accuracy of the first line of each "
        "response, in percent, with 95 % intervals. Published numbers are those of {source}; their intervals are "
        "Wilson's, for the number of questions that its program asks. They were measured on GPUs, in part with "
        "other quantization.",
        "{paper}と同じ方法（例示なし、貪欲法、256トークン）で出題し、各応答の最初の行をGestalt正答率（％）で採点しました。"
        "区間は95％信頼区間です。公表値は{source}によるもので、区間は出題数から計算したウィルソン区間です。公表値はGPU上で、"
        "一部は別の量子化で測定されています。",
    ),
    "papers_none": (
        "No published numbers of this paper are known to this version.",
        "この版には、この論文の公表値は収録されていません。",
    ),
    "papers_published": ("published", "公表値"),
    "h_exams": ("Points and passing", "得点と合否"),
    "exams_note": (
        "Official points: 1 for a right answer, 3 for the clinical questions of the required blocks B and E; questions "
        "with images were not asked. One passes with the points of both lines and few contraindicated choices. A level "
        "“passes” or “fails” where that is at least 95 % likely, the questions that it was not asked being right as "
        "often as those of the same section and worth that it was asked. Licensed doctors passed on the whole exam, "
        "images included; that a level passes does not say that it is safe at the bedside.",
        "得点は公式の配点です（1問1点、必修問題のB・Eブロックの臨床問題は3点）。画像のある問題は出していません。合格には、"
        "両方の合格点に達し、禁忌肢の選択が少ないことが必要です。「合格」「不合格」は、その確率が95％以上の場合です。"
        "出していない問題の正答率は、同じ区分・同じ配点で出した問題と等しいとみなしています。実際の試験は画像問題を含む"
        "全問で判定されます。合格は、診療で安全に使えることを意味しません。",
    ),
    "exams_model": (
        "The chance: of the questions of one section and worth, each is right with the same unknown probability, which "
        "after k of n right answers is Beta(k + ½, n − k + ½); sections, worths and contraindicated choices are taken "
        "as independent. Its interval covers 95 % of what these probabilities may be. “Another exam” draws all "
        "questions anew, with the same lines: how sure the result is beyond these questions.",
        "合格の確率：同じ区分・同じ配点の問題は、どれも同じ未知の確率で正解するとみなします。n問中k問に正解した後の"
        "確率の分布はBeta(k＋½, n−k＋½)で、区分・配点・禁忌肢は独立とみなします。区間は、その確率の取りうる値の95％を"
        "含みます。「別の試験」は、合格点はそのままで、全問を新しく引き直した場合です。この試験の問題に限らず合格できるかを"
        "示します。",
    ),
    "exam_title": ("Exam {number}, {year}", "第{number}回（{year}年）"),
    "exam_reference": (
        "The line of the general questions is that of the {reference}th exam: this one's own was not known when this "
        "version was made.",
        "一般問題・臨床実地問題の合格点は第{reference}回のものです。この版の作成時に、この回の合格点はまだ知られて"
        "いませんでした。",
    ),
    "exam_parts": (
        "Only a part of this exam's points is in the data, so nothing is said of passing.",
        "データにあるのはこの試験の一部だけなので、合否は判定できません。",
    ),
    "exam_harm_unknown": (
        "Which choices are contraindicated is not known for this exam; that line is left out.",
        "この回の禁忌肢は公開されていないため、禁忌肢の条件は考慮していません。",
    ),
    "section_required": ("Required, points", "必修（点）"),
    "section_general": ("General and clinical, points", "一般・臨床（点）"),
    "exam_line": ("line {points} of {of}", "合格点{points}／{of}"),
    "exam_asked": ("of {asked} asked, {share} % of all", "出題{asked}点中（全体の{share}％）"),
    "exam_harm": ("Contraindicated", "禁忌肢"),
    "exam_harm_line": ("at most {most}", "{most}問以下"),
    "exam_least": ("All others wrong", "残りが全問不正解"),
    "exam_most": ("All others right", "残りが全問正解"),
    "exam_chance": ("Chance of passing, %", "合格の確率（％）"),
    "exam_chance_as": ("others as the asked ones", "残りも同じ正答率"),
    "exam_again": ("Another exam, %", "別の試験（％）"),
    "exam_passes": ("passes", "合格"),
    "exam_fails": ("fails", "不合格"),
    "exam_newer": ("questions older than the model", "問題の方がモデルより古い"),
    "date": ("Questions out", "問題の公開"),
    "model_date": ("Model's date", "モデルの日付"),
    "model_not_older": ("{date} or later, from its architecture", "{date}以降（アーキテクチャから）"),
}
