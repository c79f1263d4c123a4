"""Every sentence of the report, in English and Japanese."""

from __future__ import annotations

LANGUAGES = ("en", "ja")
Bilingual = dict[str, str]

# key: (English, Japanese); fields in braces are filled in by `say`
_TEXT: dict[str, tuple[str, str]] = {
    # the verdict
    "v_recommended": (
        "{label}: no meaningful loss against {reference} at a margin of {margin} points (difference {difference}, "
        "95 % {low}…{high}, n = {n}); {resources}.",
        "{label}：{reference}と比べて意味のある低下はありません（許容差{margin}ポイント、差{difference}、"
        "95％信頼区間{low}～{high}、n＝{n}）。{resources}。",
    ),
    "v_reference": (
        "{label}, the reference itself ({resources}): no other level that meets the constraints is shown to be without "
        "a meaningful loss at a margin of {margin} points. {nearest}",
        "{label}（基準そのもの、{resources}）：条件を満たす他のレベルのうち、低下が許容差{margin}ポイント未満と"
        "示されたものはありません。{nearest}",
    ),
    "v_none_shown": (
        "No level that meets the constraints is shown to be without a meaningful loss against {reference} at a margin "
        "of {margin} points. {nearest}",
        "条件を満たすレベルのうち、{reference}に対する低下が許容差{margin}ポイント未満と示されたものはありません。"
        "{nearest}",
    ),
    "v_nearest": (
        "The nearest, {label}: difference {difference}, 95 % {low}…{high}, n = {n}; this n could have detected a loss "
        "of {detectable} points.",
        "最も近いのは{label}で、差{difference}、95％信頼区間{low}～{high}、n＝{n}。"
        "このnでは{detectable}ポイントの低下を検出できました。",
    ),
    "v_none_fits": (
        "No level meets the constraints ({constraints}). The smallest, {label}: {resources}.",
        "条件（{constraints}）を満たすレベルはありません。最も小さい{label}は{resources}。",
    ),
    "v_one_level": (
        "Only {label} was run: accuracy {accuracy} % (95 % {low}…{high}, n = {n}); {resources}. What quantization costs "
        "can't be told without a second level on the same questions.",
        "測定したのは{label}だけです：正答率{accuracy}％（95％信頼区間{low}～{high}、n＝{n}）、{resources}。"
        "同じ問題で別のレベルも測らないと、量子化による低下はわかりません。",
    ),
    "v_not_compared": (
        "The levels have no answered question in common with {reference}, so nothing can be said of a loss.",
        "{reference}と共通の回答済みの問題がないため、低下については何も言えません。",
    ),
    "v_empty": (
        "No answer has been scored, so there is nothing to recommend.",
        "採点された回答がまだないため、推奨できるものはありません。",
    ),
    "r_ram": ("{ram} GB of memory in use at most", "最大メモリ使用量 {ram} GB"),
    "r_ram_fits": (
        "{ram} GB of memory in use at most, fits {limit} GB of RAM",
        "最大メモリ使用量 {ram} GBで、{limit} GBのRAMに収まります",
    ),
    "r_ram_unfit": (
        "{ram} GB of memory in use at most, more than {limit} GB of RAM",
        "最大メモリ使用量 {ram} GBで、{limit} GBのRAMに収まりません",
    ),
    "r_file": ("a file of {size} GB", "ファイルは{size} GB"),
    "r_ram_unknown": ("memory in use not measured", "メモリ使用量は未測定"),
    "r_vram": ("{vram} GB of GPU memory", "GPUメモリ {vram} GB"),
    "r_vram_unknown": ("GPU memory not measured", "GPUメモリは未測定"),
    "r_seconds": (
        "{median} s a question (95 % of them within {p95} s)",
        "1問{median}秒（95％は{p95}秒以内）",
    ),
    "r_seconds_unknown": ("latency not measured", "応答時間は未測定"),
    "r_nothing": ("size and memory not known", "サイズとメモリは不明"),
    "c_ram": ("RAM {value} GB", "RAM {value} GB"),
    "c_vram": ("GPU memory {value} GB", "GPUメモリ {value} GB"),
    "c_latency": ("{value} s a question", "1問{value}秒"),
    "joiner": ("; ", "、"),
    # warnings
    "w_unfinished": (
        "{run}: unfinished, {done} of {expected} answers are there; every number counts what is there.",
        "{run}：未完了です（全{expected}件中{done}件）。どの数値も、ある分だけから計算しています。",
    ),
    "w_torn": (
        "{run}: the last line of {files} was cut off and left out.",
        "{run}：{files}の最終行が途切れていたため、除外しました。",
    ),
    "w_no_answers": ("{model}: no answer yet.", "{model}：回答がまだありません。"),
    "w_skipped": (
        "{run}, {task}: {n} rows could not be read and were skipped.",
        "{run}、{task}：{n}行は読み取れず、除外されました。",
    ),
    "w_data_differs": (
        "Task {task}: the runs used different data files; only identical questions are paired.",
        "課題{task}：実行ごとにデータファイルが異なります。同一の問題だけを対にして比べています。",
    ),
    "w_template_differs": (
        "Task {task}, {method}: the runs used different prompts, so their answers are not paired.",
        "課題{task}、{method}：実行ごとにプロンプトが異なるため、回答を対にしていません。",
    ),
    "w_setting_differs": (
        "The runs differ in {name} ({values}), which alone can change scores.",
        "実行ごとに{name}が異なります（{values}）。これだけでも得点は変わりえます。",
    ),
    "w_machine_differs": (
        "The runs were measured on different machines: their latencies can't be compared.",
        "測定した機械が実行ごとに異なるため、応答時間は比較できません。",
    ),
    "w_early": (
        "{run} could stop early, so what is said of a loss goes by the anytime-valid test; p-values and intervals are "
        "those of a run of fixed length and only describe.",
        "{run}は途中で打ち切れる設定のため、低下の判定には逐次検定を用いています。p値と区間は、問題数を固定した場合の"
        "参考値です。",
    ),
    "w_unparsed": (
        "{model}, {task}: {share} % of the responses name no choice; Gestalt accuracy counts them all the same.",
        "{model}、{task}：応答の{share}％はどの選択肢も示していませんが、Gestalt正答率には数えられています。",
    ),
    "w_no_noise": (
        "How far scores move by batching alone was not measured (noise.jsonl is empty).",
        "バッチの組み方だけで得点がどれだけ動くかは、測定されていません（noise.jsonlが空です）。",
    ),
}


def say(key: str, **fields: object) -> Bilingual:
    """The sentence in every language. A field that is itself bilingual is given in the sentence's language."""
    return {
        lang: text.format(**{k: v[lang] if isinstance(v, dict) else v for k, v in fields.items()})
        for lang, text in zip(LANGUAGES, _TEXT[key], strict=True)
    }


def joined(parts: list[Bilingual]) -> Bilingual:
    """Phrases in a row."""
    return {lang: say("joiner")[lang].join(p[lang] for p in parts) for lang in LANGUAGES}
