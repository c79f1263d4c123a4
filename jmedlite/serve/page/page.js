// The page: asks, streams, stops. Everything that came from a model or a file is put in as text, never as markup.
import { TEXTS } from "/texts.js";

const $ = (id) => document.getElementById(id);
let lang = (navigator.language || "ja").toLowerCase().startsWith("ja") ? "ja" : "en";
let info = null;
let key = sessionStorage.getItem("key") || "";
let turns = []; // {role, content} of the conversation, in this tab's memory alone
let running = null; // AbortController of the answer that is being given
let talk = 0; // number of the conversation: an answer to an earlier one is no part of this

const say = (name) => TEXTS[lang][name];

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function speak() {
  document.documentElement.lang = lang;
  $("lang").value = lang;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-placeholder]")) {
    element.placeholder = say(element.dataset.placeholder);
  }
  for (const element of document.querySelectorAll("[data-label]")) element.textContent = say(element.dataset.label);
  showInfo();
}

function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let n = bytes, at = 0;
  while (n >= 1000 && at < units.length - 1) { n /= 1000; at += 1; }
  return `${n >= 100 || at === 0 ? Math.round(n) : n.toPrecision(3)} ${units[at]}`;
}

function showInfo() {
  if (!info) return;
  $("model").textContent = [info.title || info.file, info.level].filter(Boolean).join(" · ");
  document.title = `${info.title || info.file} — jmedlite`;
  const license = info.license || say("licenseless"), verdict = info.verdict || say("unreported");
  $("brief").replaceChildren(...[["license", license], ["verdict", verdict]].flatMap(([name, value]) => [
    make("span", "name", `${say(name)}: `), make("span", "value", value),
  ]));
  $("about").hidden = false;
  const rows = [
    ["file", info.file], ["level", info.level], ["size", info.size && size(info.size)], ["license", license],
    ["window", `${info.n_ctx.toLocaleString()} ${say("tokens")}`], ["verdict", verdict],
  ];
  $("facts").replaceChildren(...rows.filter(([, value]) => value).flatMap(([name, value]) => [
    make("dt", "", say(name)), make("dd", "", value),
  ]));
}

function headers() {
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

async function askForKey(refused) {
  $("keyerror").hidden = !refused;
  if (!$("keys").open) $("keys").showModal();
  $("key").focus();
  await new Promise((resolve) => {
    $("keyform").onsubmit = (event) => {
      event.preventDefault();
      key = $("key").value.trim();
      $("key").value = "";
      resolve();
    };
  });
}

async function load() {
  let refused = false;
  for (;;) {
    let answer;
    try {
      answer = await fetch("/api/info", { headers: headers() });
    } catch {
      showError(say("lost"));
      return;
    }
    if (answer.status === 401) {
      await askForKey(refused || Boolean(key));
      refused = true;
      continue;
    }
    if (key) sessionStorage.setItem("key", key);
    if ($("keys").open) $("keys").close();
    info = await answer.json();
    showInfo();
    return;
  }
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function addTurn(role, text) {
  $("empty").hidden = true;
  const turn = make("section", `turn ${role}`);
  const title = make("h2", "", say(role === "user" ? "you" : "answer"));
  title.dataset.label = role === "user" ? "you" : "answer";
  const body = make("div", "text", text);
  turn.append(title, body);
  $("talk").append(turn);
  return { turn, body };
}

function addThought(turn, body) {
  const thought = make("details", "thought");
  const summary = make("summary", "", say("thinking"));
  const text = make("div", "text");
  thought.append(summary, text);
  turn.insertBefore(thought, body);
  return { summary, text };
}

function systemPrompt(question) {
  const japanese = /[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]/u.test(question);
  return info.system[japanese ? "ja" : "en"];
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function near() {
  return window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 120;
}

function reason(status, error) {
  if (status === 401) return say("keyrefused");
  if (status === 503) return say("busy");
  if (error.code === "context_length_exceeded") return say("full");
  return `${say("failed")} ${error.message || ""}`.trim();
}

async function answer(question) {
  showError("");
  if (!info) await load();
  if (!info) {
    $("question").value = question;
    return;
  }
  const ours = talk;
  const asked = addTurn("user", question);
  const { turn, body } = addTurn("assistant", "");
  body.setAttribute("aria-busy", "true");
  body.append(make("span", "cursor"));
  const control = running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  $("status").textContent = say("waiting");
  turn.scrollIntoView({ block: "end" });
  let text = "", thought = null, note = "", failed = "";
  const messages = [
    { role: "system", content: systemPrompt(turns.length ? turns[0].content : question) }, ...turns,
    { role: "user", content: question },
  ];
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), signal: control.signal,
      body: JSON.stringify({ messages, stream: true }),
    });
    if (!response.ok) {
      const said = (await response.json()).error || {};
      failed = reason(response.status, said);
      if (response.status === 401) { info = null; key = ""; sessionStorage.removeItem("key"); load(); }
    } else {
      for await (const chunk of events(response.body)) {
        if (chunk.error) { failed = reason(200, chunk.error); break; }
        const choice = chunk.choices[0];
        if (!choice) continue;
        const follow = near();
        if (choice.delta.reasoning_content) {
          thought = thought || addThought(turn, body);
          thought.text.append(choice.delta.reasoning_content);
        }
        if (choice.delta.content) {
          if (thought) { thought.summary.textContent = say("thought"); thought.summary.dataset.label = "thought"; }
          text += choice.delta.content;
          body.textContent = text;
        }
        if (choice.finish_reason === "length") note = "cut";
        if (follow) turn.scrollIntoView({ block: "end" });
      }
    }
  } catch (error) {
    if (error.name === "AbortError") note = "stopped";
    else failed = say("lost");
  }
  if (ours !== talk) return; // a new conversation has begun
  running = null;
  body.removeAttribute("aria-busy");
  body.textContent = text;
  $("send").hidden = false;
  $("stop").hidden = true;
  if (note) {
    const said = make("p", "said", say(note));
    said.dataset.label = note;
    turn.append(said);
  }
  if (failed) {
    showError(failed);
    if (!text) {
      asked.turn.remove();
      turn.remove();
      $("question").value = $("question").value || question;
    }
  }
  if (text) turns.push({ role: "user", content: question }, { role: "assistant", content: text });
  $("status").textContent = failed ? "" : say(note || "done"); // an error is an alert of its own
  $("question").focus();
}

function plain() {
  const lines = turns.map((t) => `${say(t.role === "user" ? "you" : "answer")}:\n${t.content}\n`);
  return `${lines.join("\n")}\n— ${info ? info.title || info.file : ""}. ${say("notice")}\n`;
}

function begin() {
  if (running) running.abort();
  running = null;
  talk += 1;
  turns = [];
  $("send").hidden = false;
  $("stop").hidden = true;
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  $("empty").hidden = false;
  showError("");
  $("question").focus();
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  answer(question);
};
$("question").onkeydown = (event) => {
  // an Enter that ends the conversion of kana sends nothing
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
$("stop").onclick = () => running && running.abort();
$("new").onclick = begin;
$("copy").onclick = async () => {
  const text = plain();
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard where the page came without https
    const area = make("textarea", "unseen");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  $("status").textContent = say("copied");
  flash($("copy"));
};
$("save").onclick = () => {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([plain()], { type: "text/plain;charset=utf-8" }));
  link.download = `jmedlite-${new Date().toISOString().slice(0, 16).replace(/[:T]/g, "-")}.txt`;
  link.click();
  URL.revokeObjectURL(link.href);
  $("status").textContent = say("saved");
  flash($("save"));
};
$("lang").onchange = () => { lang = $("lang").value; speak(); };

function flash(button) {
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}

speak();
load();
$("question").focus();
