"use strict";
// Shows of a list of items those that fit what is chosen. All that it reads is text and numbers of the page itself;
// it writes nothing but which of them are hidden, and how many are not.
const plain = (text) => text.normalize("NFKC").toLowerCase();
// an answer, of "3wan": the model's number, right or wrong, how it flipped or "-", and "n" where the noise is larger
const answer = (word) => {
  const [, model, outcome, flip, noise] = /^(\d+)([rw])([abc-])(n?)$/.exec(word);
  return { model, outcome, flip, noise: noise === "n" };
};
for (const list of document.querySelectorAll(".items")) {
  const filter = list.querySelector(".filter");
  const items = [...list.querySelectorAll("details.item")].map((element) => ({
    element,
    answers: element.dataset.answers.split(" ").filter(Boolean).map(answer),
    groups: element.dataset.groups.split(" "),
  }));
  const chosen = (name) => filter.querySelector(`[name="${name}"]`);
  const fits = (item, words) => {
    const [model, outcome, flip, group] = ["model", "outcome", "flip", "group"].map((name) => chosen(name).value);
    const noise = chosen("noise").checked;
    const those = item.answers.filter((a) => model === "" || a.model === model);
    if (group !== "" && !item.groups.includes(group)) return false;
    if (flip === "none" && those.some((a) => a.flip !== "-")) return false;
    const one = (a) =>
      (outcome === "" || a.outcome === outcome) && (!noise || a.noise) &&
      (flip === "" || flip === "none" || (flip === "any" ? a.flip !== "-" : a.flip === flip));
    if (!those.some(one)) return false;
    if (words.length === 0) return true;
    item.text ??= plain(item.element.textContent);
    return words.every((word) => item.text.includes(word));
  };
  const update = () => {
    const words = plain(chosen("words").value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const item of items) {
      item.element.hidden = !fits(item, words);
      shown += !item.element.hidden;
    }
    for (const kind of list.querySelectorAll("details.kind")) {
      const left = kind.querySelector("details.item:not([hidden])");
      kind.hidden = left === null;
      if (left !== null && shown < items.length) kind.open = true;
    }
    const told = filter.querySelector("output");
    told.textContent = told.dataset.text.replace("{shown}", shown).replace("{all}", items.length);
  };
  filter.addEventListener("input", update);
  filter.hidden = false;
  update();
}
