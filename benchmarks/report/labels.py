"""Every sentence of the report, in English and Japanese."""

from __future__ import annotations

from jmedlite.base.errors import UsageError

from .sections import Bilingual

LANGUAGES = ("en", "ja")

# key: (English, Japanese); fields in braces are filled in by `say`
_TEXT: dict[str, tuple[str, str]] = {
    # the verdict
    "v_recommended": (
        "{label}: no meaningful loss against {reference} at a margin of {margin} points (difference {difference}, "
        "95 % {low}…{high}, n = {n}); {resources}.",
        "{label}：{reference}に対して意味のある低下がないことが示されました（許容差{margin}ポイント、差{difference}、"
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
    "r_ram": ("{ram} GB of memory in use at most", "最大メモリ使用量 {ram} GB"),
    "r_ram_fits": (
        "{ram} GB of memory in use at most, fits {limit} GB of RAM",
        "最大メモリ使用量 {ram} GB（{limit} GBのRAMに収まる）",
    ),
    "r_ram_unfit": (
        "{ram} GB of memory in use at most, more than {limit} GB of RAM",
        "最大メモリ使用量 {ram} GB（{limit} GBのRAMに収まらない）",
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


# what stands on the page around the numbers
_PAGE: dict[str, tuple[str, str]] = {
    "title": ("Which level to use", "どのレベルを使うか"),
    "subtitle": ("Accuracy, memory and latency of {models}", "{models}の正答率・メモリ・応答時間"),
    "by": ("jmedlite {version}; measured {created}", "jmedlite {version}　測定日時 {created}"),
    "h_verdict": ("Verdict", "結論"),
    "h_plots": ("Accuracy against memory and latency", "正答率とメモリ・応答時間"),
    "h_levels": ("The levels as measured", "各レベルの測定値"),
    "h_paired": ("Paired differences and flips", "対にした差と回答の変化"),
    "h_groups": ("Accuracy by language and category", "言語別・分野別の正答率"),
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
    "shown": ("No meaningful loss", "意味のある低下なし"),
    "yes": ("shown", "示された"),
    "no": ("not shown", "示されず"),
    "file_size": ("File, GB", "ファイル（GB）"),
    "bits": ("Bits per weight", "重み1個あたりのビット数"),
    "margin_col": ("margin", "許容差"),
    "memory": ("Memory", "メモリ"),
    "rss": ("Peak in use, GB", "最大使用量（GB）"),
    "anonymous": ("of it anonymous, GB", "うち匿名（GB）"),
    "file_backed": ("of it file-backed, GB", "うちファイル由来（GB）"),
    "kv": ("KV cache, MB", "KVキャッシュ（MB）"),
    "n_ctx": ("Context, tokens", "文脈長（トークン）"),
    "vram": ("GPU, GB", "GPU（GB）"),
    "speed": ("Speed", "速度"),
    "load": ("Load, s", "読み込み（秒）"),
    "prompt_tps": ("Prompt, tokens/s", "入力（トークン/秒）"),
    "generation_tps": ("Generation, tokens/s", "生成（トークン/秒）"),
    "first_token": ("First token, s", "最初のトークンまで（秒）"),
    "question_median": ("A question, s", "1問（秒）"),
    "question_p95": ("95 % within, s", "95％が収まる時間（秒）"),
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
        "text. The type is the header's own; the name is its maker's.",
        "同じ名前のファイルでも、基準との隔たりは大きく違うことがあります。見るべきは、バイト数あたりの近さです。「より小さく、"
        "より近い」は、バイト数が同じか少なく、どの文章でも平均ダイバージェンスが小さいファイルです。形式はヘッダーの記載、名前は"
        "作成者によるものです。",
    ),
    "file": ("File", "ファイル"),
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
    "axis_seconds": ("Time per question, median ({unit})", "1問あたりの時間、中央値（{unit}）"),
    "axis_cut": ("(this axis does not begin at 0)", "（横軸は0から始まっていません）"),
    "unit_s": ("s", "秒"),
    "unit_ms": ("ms", "ミリ秒"),
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
        "questions ({samples} samples); the upper bound of the loss is one-sided, 95 % (Tango); p is the exact McNemar "
        "test, adjusted over the levels (Holm). “No meaningful loss” is said only where the bound lies below the "
        "margin of {margin} points. The detectable loss is what this n shows with {power} % power at this rate of "
        "disagreement.",
        "差は「レベル－基準」で、両方が答えた問題だけから計算しています。区間は問題を単位とする対応のあるブートストラップ"
        "（{samples}回）、低下の上限は片側95％（Tango）、pは正確マクネマー検定で、レベル数についてホルム法で補正しました。"
        "上限が許容差{margin}ポイントを下回るときだけ「意味のある低下なし」とします。検出できる低下は、このnと不一致率で"
        "検出力{power}％となる大きさです。",
    ),
    "margin_said": ("margin {margin} points", "許容差{margin}ポイント"),
    "across": ("Models against each other", "モデルどうしの比較"),
    "languages": ("Japanese against English, the same questions", "同じ問題での日本語と英語"),
    "ja": ("Japanese", "日本語"),
    "en": ("English", "英語"),
    "difference_languages": ("Japanese − English, points", "日本語－英語（ポイント）"),
    "by_task": ("By task", "課題別"),
    "by_lang": ("By language", "言語別"),
    "by_group": ("By category", "分野別"),
    "category": ("Category", "分野"),
    "groups_note": (
        "Accuracy in percent, below it the difference from the reference in points with its 95 % interval. Small "
        "categories swing by chance; none of these intervals is adjusted for how many there are.",
        "正答率（％）。下段は基準との差（ポイント）と95％信頼区間です。問題数の少ない分野は偶然で大きく動きます。区間の数に"
        "ついての補正はしていません。",
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
    "side_task": ("Task", "課題"),
    "side_language": ("Language", "言語"),
    "side_category": ("Category", "分野"),
    "side_stem": ("Length of the question", "問題文の長さ"),
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
}


def page_text(lang: str) -> dict[str, str]:
    """The page's own words in one language; raises UsageError for another than en and ja."""
    if lang not in LANGUAGES:
        raise UsageError(f"--lang {lang}: expected {' or '.join(LANGUAGES)}")
    return {key: texts[LANGUAGES.index(lang)] for key, texts in _PAGE.items()}
