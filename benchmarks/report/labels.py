"""Every sentence of the report, in English and Japanese."""

from __future__ import annotations

from jmedlite.base.errors import UsageError

from . import words_exams
from .sections import Bilingual

LANGUAGES = ("en", "ja")

# key: (English, Japanese); fields in braces are filled in by `say`
_TEXT: dict[str, tuple[str, str]] = {
    # the verdict
    "v_partial": (
        "Partial result, {there} of {expected} answers so far.",
        "途中結果です（全{expected}件の回答のうち{there}件まで）。",
    ),
    "v_conflict": (
        "Conflict: {label} passes in the primary analysis ({view}), but a loss of more than {margin} points is shown "
        "elsewhere, so it is not recommended: {where}.",
        "結果の食い違い：{label}は主解析（{view}）では基準を満たしますが、ほかで{margin}ポイントを超える低下が示されたため"
        "推奨しません：{where}。",
    ),
    "conflict_in": (
        "{where}, {before} → {after} % (n = {n}, Holm-adjusted p {p})",
        "{where}で{before}→{after}％（n＝{n}、ホルム補正後のp {p}）",
    ),
    "conflict_more": ("and {n} more", "ほか{n}件"),
    "v_recommended": (
        "{label}: its accuracy is shown to be less than {margin} points below that {of} on {n} exam questions; not a "
        "statement about safety at the bedside. The difference is {difference} points ({low} … {high}, 95 %{levels}); "
        "{resources}.",
        "{label}：試験問題{n}問での正答率は、{of}{margin}ポイント以上は低下しないことが示されました。臨床現場での安全性を"
        "示すものではありません。差は{difference}ポイント（{levels}95％信頼区間{low}～{high}）。{resources}。",
    ),
    "of_own": ("of its own unquantized answers", "量子化前の同じモデルの解答と比べて"),
    "of_other": ("of the answers of {reference}", "{reference}の解答と比べて"),
    "that_fits": (" that meets the constraints", "条件を満たす"),
    "that_is_there": ("", ""),
    "of_levels": (" for all {n} levels together", "全{n}レベルを合わせた"),
    "v_runner_up": ("Runner-up: {label}, {price}.", "次点：{label}（{price}）。"),
    "price_memory": ("memory", "メモリが"),
    "price_file": ("on the disk", "ファイルが"),
    "price_more": ("{size} more {of}", "{of}{size}多く"),
    "price_less": ("{size} less {of}", "{of}{size}少なく"),
    "price_same": ("no more {of}", "{of}同じで"),
    "price_faster": ("{share} % faster", "{share}％速く"),
    "price_slower": ("{share} % slower", "{share}％遅く"),
    "price_as_fast": ("as fast", "同じ速さで"),
    "price_unmeasured": ("speed not measured", "速度は未測定"),
    "price_better": ("{points} points better", "正答率は{points}ポイント高い"),
    "price_worse": ("{points} points worse", "正答率は{points}ポイント低い"),
    "price_as_good": ("as accurate", "正答率は同じ"),
    "v_reference": (
        "{label}, the reference itself ({resources}): no other level{able} is shown to stay less than {margin} points "
        "below it.",
        "{label}（基準そのもの、{resources}）：{able}他のレベルのうち、低下が{margin}ポイント未満と示されたものは"
        "ありません。",
    ),
    "v_reference_best": (
        "{label}, the reference itself ({resources}): no level that fits is more accurate.",
        "{label}（基準そのもの、{resources}）：条件を満たすレベルに、これより正答率の高いものはありません。",
    ),
    "v_reference_smallest": (
        "{label}, the reference itself ({resources}): no smaller level is shown to stay less than {margin} points "
        "below it.",
        "{label}（基準そのもの、{resources}）：これより小さいレベルのうち、低下が{margin}ポイント未満と示されたものは"
        "ありません。",
    ),
    "v_none_shown": (
        "No level{able} is shown to stay less than {margin} points below {reference}.",
        "{able}レベルのうち、{reference}に対する低下が{margin}ポイント未満と示されたものはありません。",
    ),
    "v_nearest": (
        "The nearest, {label}: difference {difference} points ({low} … {high}, 95 %{levels}), n = {n}; so many "
        "questions could have shown a loss of {detectable} points.",
        "最も近いのは{label}です：差は{difference}ポイント（{levels}95％信頼区間{low}～{high}）、n＝{n}。"
        "この問題数では{detectable}ポイントの低下を検出できました。",
    ),
    "v_not_measured": (
        "Not measured whether any level meets the constraints ({constraints}), so none is recommended; that does not "
        "mean that none fits. The smallest, {label}: {resources}.",
        "条件（{constraints}）を満たすかどうかが測定されていないため、推奨できるレベルはありません（収まらないという意味では"
        "ありません）。最も小さいのは{label}です（{resources}）。",
    ),
    "v_none_fits": (
        "No level meets the constraints ({constraints}). The smallest, {label}: {resources}.",
        "条件（{constraints}）を満たすレベルはありません。最も小さいのは{label}です（{resources}）。",
    ),
    "v_one_level": (
        "Only {label} has answers: accuracy {accuracy} % (95 % {low}…{high}, n = {n}); {resources}. What quantization "
        "costs can't be told without a second level on the same questions.",
        "回答があるのは{label}だけです：正答率{accuracy}％（95％信頼区間{low}～{high}、n＝{n}）、{resources}。"
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
    "r_ram": ("{ram} of memory in use at most", "最大メモリ使用量 {ram}"),
    "r_ram_fits": (
        "{ram} of memory in use at most, fits {limit} GB of RAM",
        "最大メモリ使用量 {ram}（{limit} GBのRAMに収まる）",
    ),
    "r_ram_unfit": (
        "{ram} of memory in use at most, more than {limit} GB of RAM",
        "最大メモリ使用量 {ram}（{limit} GBのRAMに収まらない）",
    ),
    "r_file": ("file {size}", "ファイル {size}"),
    "r_ram_unknown": ("memory in use not measured", "メモリ使用量は未測定"),
    "r_vram": ("{vram} of GPU memory", "GPUメモリ {vram}"),
    "r_vram_unknown": ("GPU memory not measured", "GPUメモリは未測定"),
    "r_seconds": (
        "{median} a question, 95 % of them within {p95}",
        "1問 {median}、95％は{p95}以内",
    ),
    "r_seconds_unknown": ("latency not measured", "応答時間は未測定"),
    "r_nothing": ("size and memory not known", "サイズとメモリは不明"),
    "c_ram": ("RAM {value} GB", "RAM {value} GB"),
    "c_vram": ("GPU memory {value} GB", "GPUメモリ {value} GB"),
    "c_latency": ("{value} s a question", "1問{value}秒"),
    "joiner": ("; ", "、"),
    "comma": (", ", "、"),
    "pair": ("{side}: {group}", "{side}：{group}"),
    "space": (" ", ""),
    # why a score is the default of its method
    "default_letter": ("it has no other score", "この問い方の採点法はこれだけです"),
    "default_text": (
        "a sum has more terms the longer a choice is, and so takes short choices whatever the question",
        "合計では選択肢が長いほど項が増え、問題によらず短い選択肢が選ばれやすくなります",
    ),
    "default_generate": (
        "the papers' accuracy; an exact match tells wording as much as knowledge",
        "論文の正答率です。完全一致は知識だけでなく言い回しにも左右されます",
    ),
    # warnings
    "w_primaries": (
        "The runs declared different primary analyses ({names}); the verdict goes by the first.",
        "実行ごとに異なる主解析が宣言されています（{names}）。結論は最初のものによります。",
    ),
    "w_unfinished": (
        "{run}: unfinished, {done} of {expected} answers are there; every number counts what is there.",
        "{run}：未完了です（全{expected}件中{done}件）。どの数値も、ある分だけから計算しています。",
    ),
    "w_torn": (
        "{run}: the last line of {files} was cut off and left out.",
        "{run}：{files}の最終行が途切れていたため、除外しました。",
    ),
    "w_no_answers": ("No answer yet from {models}.", "{models}の回答はまだありません。"),
    "w_apart": (
        "The models were not all asked the same questions: their accuracies can be compared only in the tables that "
        "pair them, and the plots show no Pareto front.",
        "すべてのモデルに同じ問題を出してはいません。正答率を比べられるのは、対にした表の中だけです。図のパレート前線も"
        "省いています。",
    ),
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
        "{task}: up to {share} % of the responses ({model}) name no choice; Gestalt accuracy counts them all the same.",
        "{task}：応答の最大{share}％（{model}）はどの選択肢も示していませんが、Gestalt正答率には数えられています。",
    ),
    "w_mass": (
        "{task}: in half of the questions, the letters together have at most {share} % of the probability ({model}): "
        "the model wanted to say something else, such as a thought, and which letter is the likeliest tells little of "
        "what it knows.",
        "{task}：半数の問題で、選択肢の記号の確率は合計しても{share}％以下です（{model}）。モデルは別のこと（思考など）を述べよう"
        "としており、どの記号の確率が最も高いかから知識はほとんど分かりません。",
    ),
    "w_failed": (
        "{run}: the server failed on {n} question(s); they are missing from all results of that model.",
        "{run}：サーバーが{n}問に回答できませんでした。そのモデルの結果には含まれていません。",
    ),
    "w_floor": (
        "{model} is right in {accuracy} % (95 % {low}…{high}), which is not shown to be more than {floor} %, what one "
        "gets without knowing anything ({name}). Levels that only guess don't differ: that no loss is found "
        "says little.",
        "{model}の正答率{accuracy}％（95％信頼区間{low}～{high}）は、何も知らなくても得られる{floor}％（{name}）を上回るとは"
        "示されていません。当て推量どうしに差は出ないため、低下が見られないことにはほとんど意味がありません。",
    ),
    "w_named_otherwise": (
        "{model} is called {label}, but its header says {level}: what is in the file is what the header says.",
        "{model}の名前は{label}ですが、ヘッダーには{level}とあります。ファイルの中身はヘッダーのとおりです。",
    ),
    "w_quantized_base": (
        "{models}: made of weights that were quantized already ({how}). What that had cost is in no comparison here: "
        "the widest of these levels is not the original model.",
        "{models}は、すでに量子化されていた重み（{how}）から作られています。その量子化で失われた分は、ここでの比較には"
        "含まれません。最も精度の高いレベルも、元のモデルと同じではありません。",
    ),
    "w_no_noise": (
        "How far scores move by batching alone was not measured (noise.jsonl is empty).",
        "バッチの組み方だけで得点がどれだけ動くかは、測定されていません（noise.jsonlが空です）。",
    ),
    **words_exams.TEXT,
}


def say(key: str, **fields: object) -> Bilingual:
    """The sentence in every language. A field that is itself bilingual is given in the sentence's language."""
    return {
        lang: text.format(**{k: v[lang] if isinstance(v, dict) else v for k, v in fields.items()})
        for lang, text in zip(LANGUAGES, _TEXT[key], strict=True)
    }


def joined(parts: list[Bilingual], by: str = "joiner") -> Bilingual:
    """Phrases in a row."""
    return {lang: say(by)[lang].join(p[lang] for p in parts) for lang in LANGUAGES}


def together(sentences: list[Bilingual]) -> Bilingual:
    """Sentences in a row."""
    return joined(sentences, "space")


def view_name(key: str) -> Bilingual:
    """What a way of counting is called on the page."""
    return dict(zip(LANGUAGES, _PAGE[f"view_{key}"], strict=True))


def side_name(side: str) -> Bilingual:
    """What tells questions apart: `lang`, or as a task declares it."""
    return {lang: _page(f"side_{side}", lang, side) for lang in LANGUAGES}


def part_name(side: str, group: str) -> Bilingual:
    """One of the groups of a side."""
    key = {"lang": group, "stem": f"stem_{group}"}.get(side, "")
    return {lang: _page(key, lang, group) for lang in LANGUAGES}


def group_name(side: str, group: str) -> Bilingual:
    """A group with the side that it is one of: "facts: adapter"."""
    return say("pair", side=side_name(side), group=part_name(side, group))


def _page(key: str, lang: str, other: str) -> str:
    """A word of the page, `other` where it has none."""
    return _PAGE[key][LANGUAGES.index(lang)] if key in _PAGE else other


# what stands on the page around the numbers
_PAGE: dict[str, tuple[str, str]] = {
    "title": ("Which level to use", "どのレベルを使うか"),
    "subtitle": ("Accuracy, memory and latency of {models}", "{models}の正答率・メモリ・応答時間"),
    "by": ("jmedlite {version}; measured {created}", "jmedlite {version}　測定日時 {created}"),
    "h_verdict": ("Verdict", "結論"),
    "partial": ("partial", "途中結果"),
    "rules": (
        "With limits on memory or time: the most accurate level that fits, and of equally accurate ones the fastest; "
        "without: the smallest that is shown to lose less than the margin, and what the next one costs.",
        "メモリや時間の条件があるときは、条件を満たす中で最も正答率の高いレベル（同率なら最も速いもの）を、条件がないときは、"
        "低下が許容差未満と示された最も小さいレベルと、次点の差を示します。",
    ),
    "claims_note": (
        "Primary analysis: {primary} ({declared}). A level is recommended only where its loss in it is shown to "
        "be below {margin} points, and no other analysis and no group of questions shows a loss beyond that "
        "(Holm-adjusted). All {n} levels are one family of claims: tested from the widest to the narrowest, each at "
        "its share of 5 % and that of the wider ones shown before it (fallback procedure), so that the chance of "
        "recommending any level that loses more is at most 5 % over the whole report.",
        "主解析：{primary}（{declared}）。主解析で低下が{margin}ポイント未満と示され、かつ他の解析やどの問題群でもそれを超える"
        "低下が示されない（ホルム補正）レベルだけを推奨します。全{n}レベルをひとまとまりの主張とし、5％を分け合って幅の広いもの"
        "から順に検定し、示されたレベルの分は次に引き継ぎます（フォールバック法）。これを超えて低下するレベルを一つでも推奨する"
        "確率は、報告全体で5％以下です。",
    ),
    "declared": ("declared before the run", "実行前に宣言"),
    "by_default": (
        "not declared by this run, so the default of its method: {reason}",
        "この実行では宣言がないため既定のもの：{reason}",
    ),
    "side_lang": ("language", "言語"),
    "side_task": ("task", "課題"),
    "side_group": ("category", "分野"),
    "side_stem": ("length of the question", "問題文の長さ"),
    "stem_long": ("long", "長い"),
    "stem_short": ("short", "短い"),
    "beyond": ("loss shown", "低下あり"),
    "untold_title": (
        "Too few questions to tell: a loss of this many points could have been shown ({level})",
        "問題数が足りず判断できない群と、示すことができた低下の大きさ（{level}、ポイント）",
    ),
    "differ": ("Do they differ? (p, Holm)", "群の間に差があるか（p、ホルム）"),
    "h_plots": ("Accuracy against memory and latency", "正答率とメモリ・応答時間"),
    "h_levels": ("The levels as measured", "各レベルの測定値"),
    "h_paired": ("Paired differences and flips", "対にした差と回答の変化"),
    "h_groups": ("Accuracy by groups of questions", "問題群ごとの正答率"),
    "h_harm": ("Contraindicated choices taken", "禁忌肢の選択"),
    "h_flipped": ("The items, and whose answer changed", "問題ごとの回答とその変化"),
    "h_baselines": ("Baselines on the same items", "同じ問題でのベースライン"),
    "h_method": ("How it was measured", "測定の方法と出所"),
    "recommended": ("recommended", "推奨"),
    "reference": ("reference", "基準"),
    "level": ("Level", "レベル"),
    "model": ("Model", "モデル"),
    "against": ("Against", "比較相手"),
    "n": ("n", "n"),
    "questions": ("questions", "問"),
    "accuracy": ("Accuracy, %", "正答率（％）"),
    "ci": ("95 %", "95％"),
    "difference": ("Difference, points", "差（ポイント）"),
    "loss_bound": ("Loss at most, points", "低下の上限（ポイント）"),
    "shown": ("Shown to lose less than the margin", "低下が許容差未満"),
    "yes": ("shown", "示された"),
    "conflict": ("conflict", "食い違い"),
    "no": ("not shown", "示されず"),
    "file_size": ("File", "ファイル"),
    "bits": ("Bits per weight", "重み1個あたりのビット数"),
    "margin_col": ("margin", "許容差"),
    "memory": ("Memory", "メモリ"),
    "rss": ("Peak in use", "最大使用量"),
    "anonymous": ("of it anonymous", "うち匿名"),
    "file_backed": ("of it file-backed", "うちファイル由来"),
    "kv": ("KV cache", "KVキャッシュ"),
    "n_ctx": ("Context, tokens", "文脈長（トークン）"),
    "vram": ("GPU", "GPU"),
    "speed": ("Speed", "速度"),
    "load": ("Load", "読み込み"),
    "prompt_tps": ("Prompt, tokens/s", "入力（トークン/秒）"),
    "generation_tps": ("Generation, tokens/s", "生成（トークン/秒）"),
    "first_token": ("First token", "最初のトークンまで"),
    "question_median": ("A question", "1問"),
    "question_p95": ("95 % within", "95％が収まる時間"),
    "thoughts": ("Thought, tokens (mean)", "思考（トークン、平均）"),
    "rounds": ("Rounds", "回数"),
    "distance": ("Distance to the reference, by kind of text", "文章の種類ごとの基準との隔たり"),
    "distance_note": (
        "The KL divergence tells how far a level's next-token probabilities are from the reference's; it needs no "
        "answers. Below each number its 95 % interval (bootstrap over the chunks that the text is read in, none where "
        "there are fewer than 10); the 99.9 % quantile is what one token in a thousand exceeds, and of fewer than "
        "some 100 chunks its interval is too narrow.",
        "KLダイバージェンスは、次のトークンの確率が基準からどれだけ離れているかを表し、正解を必要としません。下段は95％信頼"
        "区間です（文章を区切ったチャンクを単位とするブートストラップ。10チャンク未満では省略）。99.9％点は、1,000トークンに"
        "1回の割合で超える値です。チャンクが100個ほどに満たないと、その区間は実際より狭くなります。",
    ),
    "text_unnamed": ("text", "文章"),
    "chunks": ("chunks", "チャンク"),
    "scored_tokens": ("Tokens", "トークン数"),
    "perplexity": ("Perplexity", "パープレキシティ"),
    "kl_mean": ("Mean KL, nats", "平均KL（nat）"),
    "kl_median": ("Median KL, nats", "KL中央値（nat）"),
    "kl_99": ("99 % KL, nats", "KL 99％点（nat）"),
    "kl_999": ("99.9 % KL, nats", "KL 99.9％点（nat）"),
    "by_size": ("Files by size, whatever they are called", "サイズ順のファイル（名前によらず）"),
    "by_size_note": (
        "Files of one name can differ much in divergence: what counts is what a file gives for its bytes. "
        "“Nearer at no more bytes” are files that are no larger and have a smaller mean divergence on every "
        "text, by more than its chunks differ (95 %). The type is the header's own; the name is its maker's.",
        "同じ名前のファイルでも、基準との隔たりは大きく違うことがあります。見るべきは、バイト数あたりの近さです。「より小さく、"
        "より近い」は、バイト数が同じか少なく、どの文章でも平均ダイバージェンスが、チャンク間のばらつきを超えて（95％）小さい"
        "ファイルです。形式はヘッダーの記載、名前は作成者によるものです。",
    ),
    "bytes": ("Size", "サイズ"),
    "file_type": ("Type in the header", "ヘッダーの形式"),
    "nearer": ("Nearer at no more bytes", "より小さく、より近い"),
    "quantized_by": ("Quantized by", "量子化した人"),
    "types": ("Weights by type", "形式別の重みの数"),
    "tensor_types": ("Types of the tensors", "テンソルの形式"),
    "text_kind": ("Text", "文章"),
    "cap_title": ("{title}: {models}.", "{title}：{models}。"),
    "cap_trade_off": (
        "Accuracy with 95 % intervals (Wilson), n = {n} questions; medians of memory and time.",
        "正答率と95％信頼区間（ウィルソン）、n＝{n}問。メモリと時間は中央値。",
    ),
    "cap_difference": (
        "Differences from the reference on the same questions, n = {n}, with 95 % intervals (paired bootstrap over "
        "questions); the bound of the loss is one-sided, 95 %; margin {margin} points.",
        "同じ問題での基準との差（n＝{n}問）と95％信頼区間（問題を単位とする対応のあるブートストラップ）。低下の上限は片側95％、"
        "許容差は{margin}ポイント。",
    ),
    "cap_distance": (
        "KL divergence from the reference's next-token distributions, with 95 % intervals (bootstrap over the chunks "
        "of the text).",
        "次のトークンの分布の、基準からのKLダイバージェンスと95％信頼区間（文章のチャンクを単位とするブートストラップ）。",
    ),
    "cap_machine": ("Measured on {machine}.", "測定環境：{machine}。"),
    "cap_cores": ("{n} cores", "{n}コア"),
    "plot_size": ("Divergence against file size", "基準との隔たりとファイルサイズ"),
    "axis_kl": ("Mean KL divergence (nats)", "平均KLダイバージェンス（nat）"),
    "agreement": ("Same top token, %", "最有力トークンの一致（％）"),
    "not_measured": ("not measured", "未測定"),
    "spread_note": (
        "Medians over rounds; the smallest and largest below. Memory in use counts resident pages, anonymous and "
        "file-backed; file-backed pages can be dropped and read again.",
        "中央値。下段は最小～最大。メモリ使用量は常駐ページ（匿名とファイル由来）の合計です。ファイル由来のページは破棄して"
        "読み直せます。",
    ),
    "plot_memory": ("Accuracy against memory", "正答率とメモリ"),
    "plot_latency": ("Accuracy against latency", "正答率と応答時間"),
    "plot_difference": ("Differences from the reference", "基準との差"),
    "plot_note": (
        "Bars are 95 % intervals (Wilson) of each level by itself.",
        "縦棒は各レベル単独の95％信頼区間（ウィルソン）です。",
    ),
    "plot_front": (
        "All levels answered the same questions, so their differences are known better than the bars suggest: see the "
        "paired differences. The line joins the levels that no other beats (Pareto front).",
        "どのレベルも同じ問題に答えているため、差は縦棒の印象より精密にわかります（「対にした差」を参照）。線は、他に上回る"
        "もののないレベル（パレート前線）を結びます。",
    ),
    "no_plot": ("Not measured, so there is no plot.", "未測定のため、図はありません。"),
    "axis_accuracy": ("Accuracy (%)", "正答率（％）"),
    "axis_rss": ("Peak memory in use ({unit})", "最大メモリ使用量（{unit}）"),
    "axis_file": ("File size ({unit})", "ファイルサイズ（{unit}）"),
    "axis_seconds": ("A question, median ({unit})", "1問の時間、中央値（{unit}）"),
    "axis_cut": ("(this axis does not begin at 0)", "（横軸は0から始まっていません）"),
    "axis_difference": ("Difference in accuracy (points)", "正答率の差（ポイント）"),
    "axis_margin": ("margin", "許容差"),
    "view_letter": ("Choosing a letter", "記号を選ぶ"),
    "view_text": ("Likelihood of the choices", "選択肢の尤度"),
    "view_text_per_token": ("Likelihood per token", "トークンあたりの尤度"),
    "view_generate": ("Free answer, Gestalt accuracy", "自由記述・Gestalt正答率"),
    "view_generate_exact": ("Free answer, exact match", "自由記述・完全一致"),
    "p": ("p (McNemar)", "p（マクネマー）"),
    "p_holm": ("p (Holm)", "p（ホルム）"),
    "right_to_wrong": ("right → wrong", "正→誤"),
    "wrong_to_right": ("wrong → right", "誤→正"),
    "wrong_to_wrong": ("wrong → another wrong", "誤→別の誤"),
    "unchanged": ("unchanged", "変化なし"),
    "flips": ("Flips, answers", "回答の変化（件）"),
    "detectable": ("Detectable loss, points", "検出できる低下（ポイント）"),
    "below_noise": ("Decided by less than the noise", "ノイズ未満の差で決まった回答"),
    "paired_note": (
        "Level minus reference, over the questions that both answered. The interval is a paired bootstrap over "
        "questions ({samples} samples), 95 % for all levels together (Bonferroni); the upper bound of the loss "
        "(Tango, corrected for continuity) is one-sided, at the level's share of 5 % (α); p is the exact McNemar test, "
        "adjusted over the levels (Holm). A loss below the margin is shown only where the bound lies below {margin} "
        "points. The detectable loss is what this n shows with {power} % power at this rate of disagreement.",
        "差は「レベル－基準」で、両方が答えた問題だけから計算しています。区間は問題を単位とする対応のあるブートストラップ"
        "（{samples}回）で、全レベルを合わせて95％です（ボンフェローニ）。低下の上限（Tango、連続性の補正あり）は片側で、5％の"
        "うちそのレベルの取り分（α）によります。pは正確マクネマー検定で、レベル数についてホルム法で補正しました。上限が許容差"
        "{margin}ポイントを下回るときだけ、低下が許容差未満と示されたとします。検出できる低下は、このnと不一致率で検出力{power}％"
        "となる大きさです。",
    ),
    "margin_said": ("margin {margin} points", "許容差{margin}ポイント"),
    "across": ("Models against each other", "モデルどうしの比較"),
    "languages": ("Japanese against English, the same questions", "同じ問題での日本語と英語"),
    "ja": ("Japanese", "日本語"),
    "en": ("English", "英語"),
    "difference_languages": ("Japanese − English, points", "日本語－英語（ポイント）"),
    "by_task": ("By task", "課題別"),
    "by_stem": ("By length of the question", "問題文の長さ別"),
    "by_side": ("By {side}", "{side}別"),
    "by_lang": ("By language", "言語別"),
    "by_group": ("By category", "分野別"),
    "category": ("Category", "分野"),
    "groups_note": (
        "Accuracy in percent, below it the difference from the reference in points with its 95 % interval, not "
        "adjusted for how many there are: small groups swing by chance. “Loss shown”: beyond the margin, and no chance "
        "(exact McNemar test, Holm-adjusted over all groups and levels). Whether groups differ: a permutation test of "
        "their differences, Holm-adjusted over the ways of grouping and levels.",
        "正答率（％）。下段は基準との差（ポイント）と95％信頼区間で、区間の数についての補正はしていません（問題数の少ない群は"
        "偶然で大きく動きます）。「低下あり」は、許容差を超え、かつ偶然ではないもの（正確マクネマー検定、全群・全レベルについて"
        "ホルム補正）です。群の間に差があるかは、差の並べ替え検定によります（分け方とレベルについてホルム補正）。",
    ),
    "harm_note": (
        "Some choices are contraindicated: to take one would harm the patient. Of the items that have such a choice, "
        "how often was one taken; and the score when a right answer counts 1, a wrong one 0, and a harmful one −1.",
        "選択肢の一部は禁忌肢（選ぶと患者に害が及ぶもの）です。禁忌肢のある問題のうち、それを選んだ割合と、正答を1、誤答を0、"
        "禁忌肢を－1とした得点を示します。",
    ),
    "harm_none": (
        "No item of these tasks is marked as having a contraindicated choice.",
        "これらの課題には、禁忌肢の印が付いた問題がありません。",
    ),
    "harm_taken": ("Taken", "選択数"),
    "harm_rate": ("Of items with one, %", "該当問題に占める割合（％）"),
    "harm_new": ("new against reference", "基準では選ばず新たに選択"),
    "harm_gone": ("no longer taken", "選ばなくなった数"),
    "harm_weighted": ("Harm-weighted score, %", "害を加味した得点（％）"),
    "harm_difference": ("its difference, points", "その差（ポイント）"),
    "harm_chance": ("by chance", "無作為の場合"),
    "flipped_note": (
        "{n} items were answered otherwise by some level than by its reference; those with a newly taken "
        "contraindicated choice come first. Percentages are the "
        "probabilities of the choices relative to each other (for free answers: similarity); ● is what was taken.",
        "いずれかのレベルで基準と回答が変わった問題は{n}問です。新たに禁忌肢を選んだ問題を先に並べています。％は選択肢どうしの相対的な確率"
        "（自由記述では類似度）、●は選んだものです。",
    ),
    "some_right_to_wrong": ("Right in the reference, wrong in some level", "基準では正答、いずれかのレベルで誤答"),
    "some_wrong_to_right": ("Wrong in the reference, right in some level", "基準では誤答、いずれかのレベルで正答"),
    "some_wrong_to_wrong": (
        "Wrong in the reference, another wrong answer in some level",
        "基準では誤答、いずれかのレベルで別の誤答",
    ),
    "flipped_none": (
        "No level answered any item otherwise than its reference.",
        "基準と回答が変わった問題はありません。",
    ),
    "flipped_more": ("{n} more are in the JSON file.", "残り{n}問はJSONファイルにあります。"),
    "unchanged_more": (
        "{n} more items are unchanged; the JSON file has the first 2,000 of all.",
        "変わらなかった問題はほかに{n}問あります（JSONファイルには全体の先頭2,000問まで）。",
    ),
    "all_unchanged": ("Answered by every level as by its reference", "どのレベルでも基準と同じ回答"),
    "right_": ("right", "正答"),
    "wrong_": ("wrong", "誤答"),
    "f_words": ("Search", "検索"),
    "f_any": ("any", "すべて"),
    "f_outcome": ("Outcome", "正誤"),
    "f_flip": ("Flip", "変化"),
    "f_flipped": ("any change", "変化あり"),
    "f_group": ("Group", "グループ"),
    "f_noise": ("decided within the noise", "ノイズ未満の差で決まったもの"),
    "f_shown": ("{shown} of {all} items here", "{all}問中{shown}問を表示"),
    "right_answer": ("right", "正解"),
    "harmful": ("contraindicated", "禁忌"),
    "response": ("Response", "応答"),
    "choices": ("Choices", "選択肢"),
    "context": ("Context", "資料"),
    "order_number": ("order {n}", "並び{n}"),
    "baseline_chance": ("chance", "無作為"),
    "baseline_most_frequent": ("the most frequent letter", "最頻の記号"),
    "baseline_first_choice": ("the first choice", "最初の選択肢"),
    "baseline_empty_output": ("an empty output", "空の出力"),
    "baseline_all_choices": ("a list of all choices", "全選択肢の列挙"),
    "baseline_human": ("people who sat the exam", "受験者"),
    "baseline_models": ("the models here", "今回のモデル"),
    "baselines_note": (
        "What would be scored without knowing anything, in percent of the same items.",
        "何も知らなくても得られる得点です（同じ問題に対する％）。",
    ),
    "asked": ("Way of asking", "問い方"),
    "machine": ("Machine", "機械"),
    "settings": ("Settings", "設定"),
    "run": ("Run", "実行"),
    "tasks": ("Tasks", "課題"),
    "task": ("Task", "課題"),
    "source": ("Source", "出所"),
    "licence": ("Licence", "ライセンス"),
    "licence_unknown": ("not stated", "記載なし"),
    "items": ("Items", "問題数"),
    "scored": ("scored", "採点"),
    "unparsed": ("names no choice", "選択肢なし"),
    "too_long": ("too long", "長すぎ"),
    "missing": ("not yet asked", "未実施"),
    "excluded": ("left out", "除外"),
    "reasons": ("Left out because", "除外の理由"),
    "accounting": ("What became of every item", "全問題の内訳"),
    "templates": ("Prompts", "プロンプト"),
    "first_prompt": ("the first prompt as the model got it", "モデルに渡した最初のプロンプト"),
    "files": ("Files", "ファイル"),
    "gestalt": ("Gestalt score, %", "Gestalt得点（％）"),
    "confidence": ("Confidence, %", "確信度（％）"),
    "calibration": ("Calibration error, %", "較正誤差（％）"),
    "mass": ("Probability of the letters, %", "記号の確率の合計（％）"),
    "confidence_title": (
        "How sure the models were (items with one right answer)",
        "モデルの確信度（正解が一つの問題）",
    ),
    "noise_title": (
        "Decided by less than batching alone moves scores",
        "バッチの組み方による揺れより小さい差で決まった回答",
    ),
    "noise_most": ("Largest move, nats", "最大の揺れ（nat）"),
    "noise_median": ("Median move, nats", "揺れの中央値（nat）"),
    "noise_below": ("Answers below it", "それ未満の回答"),
    "noise_changed": ("Other answers when alone", "単独評価で変わった回答"),
    "of": ("of", "／"),
    "to": ("…", "～"),
    "made_from": ("Made from", "変換元"),
    "adapters": ("Adapters", "アダプター"),
    "parameters": ("Parameters", "パラメータ数"),
    "warnings": ("To be known", "注意"),
    "none": ("none", "なし"),
    **words_exams.PAGE,
}


def page_text(lang: str) -> dict[str, str]:
    """The page's own words in one language; raises UsageError for another than en and ja."""
    if lang not in LANGUAGES:
        raise UsageError(f"--lang {lang}: expected {' or '.join(LANGUAGES)}")
    return {key: texts[LANGUAGES.index(lang)] for key, texts in _PAGE.items()}
