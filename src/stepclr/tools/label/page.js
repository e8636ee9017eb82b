"use strict";
// One image at a time. An answer is the name of a class, or "" for "not sure". Answers are kept in the browser's storage
// under a key made of the page's content, and are saved as labels.csv. Names are text everywhere: nothing writes HTML.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const CLASS_KEYS = [..."123456789abcdefghijklmnopqtvwxyz"]; // r, s and u have a meaning of their own
const SMALL_PX = 64; // up to this width an image is shown with sharp pixels, at most ENLARGED times as large
const ENLARGED = 12;

let state = restored();
let correcting = false; // whether the image was chosen in the review, to which its answer returns

// --- state ---

function restored() {
  const empty = { answers: {}, added: [], history: [], at: 0, changes: 0 };
  try {
    return { ...empty, ...JSON.parse(localStorage.getItem(data.key)) };
  } catch {
    return empty;
  }
}

function keep() {
  try {
    localStorage.setItem(data.key, JSON.stringify(state));
    byId("unkept").hidden = true;
  } catch {
    byId("unkept").hidden = false;
  }
}

const classes = () => [...data.classes, ...state.added];
const answered = (item) => item in state.answers;
const unanswered = () => data.images.map((_, item) => item).filter((item) => !answered(item));
const words = (label) => label || "not sure";
const progress = () => `${data.images.length - unanswered().length} of ${data.images.length} answered`;

/** The next image without an answer after the present one, from the first again after the last; undefined if none. */
function following() {
  const left = unanswered().filter((item) => item !== state.at);
  return left.find((item) => item > state.at) ?? left[0];
}

function answer(label) {
  const item = state.at;
  state.history.push([item, state.answers[item] ?? null]);
  state.answers[item] = label;
  state.changes += 1;
  const next = following();
  const back = correcting;
  if (!back && next !== undefined) state.at = next;
  keep();
  if (back) show("review", item);
  else if (next === undefined) show("finish");
  else render();
  announce(`${data.images[item].path}: ${words(label)}; ${progress()}`);
}

function undo() {
  const last = state.history.pop();
  if (!last) return announce("There is nothing to undo.");
  const [item, before] = last;
  if (before === null) delete state.answers[item];
  else state.answers[item] = before;
  state.at = item;
  state.changes += 1;
  keep();
  show("label");
  announce(`${data.images[item].path}: ${before === null ? "no answer" : words(before)} again`);
}

function skip() {
  const next = following();
  if (next === undefined) return announce("No other image is without an answer.");
  go(next);
  announce("Skipped; the image comes again after the others.");
}

function go(item) {
  state.at = Math.max(0, Math.min(data.images.length - 1, item));
  keep();
  render();
}

function addClass(name) {
  name = name.normalize("NFC").trim();
  if (!name) return announce("A class needs a name.");
  if (classes().includes(name)) return announce(`There is a class ${name} already.`);
  state.added.push(name);
  keep();
  renderClasses();
  show("label"); // where its key works
  announce(`Class ${name} was added.`);
}

// --- labels.csv ---

function csv() {
  const rows = [data.header, ...data.known];
  data.images.forEach(({ path }, item) => {
    if (answered(item)) rows.push([path, state.answers[item]]);
  });
  return rows.map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

/** A cell by RFC 4180. Nothing is added to a name that a spreadsheet would take for a formula: names must stay exact. */
function quoted(cell) {
  return /[",\r\n]|^\s|\s$/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

/** UTF-8. A lone surrogate stands for a byte of a file name that is not valid text, as in Python's surrogateescape. */
function bytes(text) {
  const encoder = new TextEncoder();
  return text.split(/([\udc80-\udcff])/u).map((part, place) =>
    place % 2 ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : encoder.encode(part));
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(bytes(csv()), { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // ms
  state.changes = 0;
  keep();
  render();
  announce("labels.csv is among this browser's downloads.");
}

// --- what is shown ---

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function announce(text) {
  byId("status").textContent = text;
}

const view = () => document.querySelector("main > section:not([hidden])").id;

function show(name, item) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  if (name !== "label") correcting = false;
  render();
  // What had the focus is hidden now: a keyboard continues at the heading, or at the image that was corrected.
  const tile = item === undefined ? null : document.querySelector(`[data-item="${item}"]`);
  (tile ?? byId(`${name}-heading`)).focus();
}

function render() {
  const unsure = Object.values(state.answers).filter((label) => label === "").length;
  const kept = byId("unkept").hidden ? ", but kept in this browser" : "";
  const unsaved = state.changes ? `${state.changes} not saved yet${kept}` : "";
  byId("progress").value = data.images.length - unanswered().length;
  byId("counts").textContent = [
    progress(), unsure ? `${unsure} not sure` : "", unsaved,
  ].filter(Boolean).join(" · ");
  for (const button of document.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-current", button.dataset.view === view());
  }
  ({ label: renderImage, review: renderReview, finish: renderFinish })[view()]();
}

function renderImage() {
  const { path, src, neighbors } = data.images[state.at];
  const label = state.answers[state.at];
  byId("label-heading").textContent = `Image ${state.at + 1} of ${data.images.length}`;
  byId("image").src = src;
  byId("image").alt = path;
  byId("path").textContent = path;
  for (const button of byId("classes").children) {
    button.setAttribute("aria-pressed", button.dataset.label === label);
  }
  byId("unsure").setAttribute("aria-pressed", label === "");
  byId("undo").disabled = !state.history.length;
  byId("neighbors").replaceChildren(...neighbors.map((place) => {
    const neighbor = data.thumbnails[place];
    const known = state.answers[neighbor.item] ?? neighbor.label;
    const text = known === null ? "no label" : words(known);
    const image = make("img", { src: neighbor.src, alt: neighbor.path, onload: sharpen });
    const caption = make("figcaption", { className: known ? "known" : "", textContent: text });
    return make("figure", { title: neighbor.path }, image, caption);
  }));
}

/** Small images are enlarged with sharp pixels, and not to the size of a large one. */
function sharpen({ target }) {
  const small = target.naturalWidth <= SMALL_PX;
  target.classList.toggle("small", small);
  if (target.id === "image") target.style.maxHeight = small ? `${ENLARGED * target.naturalHeight}px` : "";
}

function renderClasses() {
  byId("classes").classList.toggle("many", classes().length > 9);
  byId("classes").replaceChildren(...classes().map((name, number) => {
    const key = CLASS_KEYS[number];
    const button = make("button", { type: "button", onclick: () => answer(name) });
    if (key) {
      button.append(make("kbd", { textContent: key.toUpperCase() }));
      button.setAttribute("aria-keyshortcuts", key);
    }
    button.append(make("span", { textContent: name }));
    button.dataset.label = name;
    return button;
  }));
}

function renderReview() {
  const groups = [...classes().map((name) => [name, name]), ["not sure", ""], ["no answer yet", undefined]];
  const sections = [];
  for (const [title, label] of groups) {
    const items = data.images.map((_, item) => item).filter((item) => state.answers[item] === label);
    if (!items.length) continue;
    const tiles = items.map((item) => {
      const { path, src } = data.images[item];
      const image = make("img", { src, alt: `${path}: ${title}`, loading: "lazy", onload: sharpen });
      const tile = make("button", { type: "button", className: "tile", title: path, onclick: () => correct(item) }, image);
      tile.dataset.item = item;
      return tile;
    });
    sections.push(make("h3", { textContent: `${title} (${items.length})` }), make("div", { className: "tiles" }, ...tiles));
  }
  byId("groups").replaceChildren(...sections);
}

function correct(item) {
  state.at = item;
  show("label");
  correcting = true;
}

function renderFinish() {
  const left = unanswered().length;
  byId("finish-heading").textContent = left ? `${left} images have no answer yet` : "All images are answered";
  const here = new Map(classes().map((name) => [name, 0]));
  for (const label of Object.values(state.answers)) if (label) here.set(label, (here.get(label) ?? 0) + 1);
  const all = new Map(here);
  for (const [, label] of data.known) if (label) all.set(label, (all.get(label) ?? 0) + 1);
  const few = [...all].filter(([, count]) => count < 2).map(([name]) => name);
  byId("advice").textContent = few.length
    ? `Fewer than two images have the label ${few.join(", ")}: a classifier cannot learn it yet. Label a few more, or another page.`
    : "Look at the review once, then save.";
  byId("table").replaceChildren(...[...all].map(([name, count]) => {
    const cells = data.known.length ? [name, here.get(name) ?? 0, count] : [name, count];
    return make("tr", {}, ...cells.map((cell) => make("td", { textContent: cell })));
  }));
}

// --- keys and buttons ---

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !byId("keys").checked) return;
  if (event.target.matches("input") && event.key !== "Escape") return;
  // Space and Enter on a button press it. A key that is held down answers once.
  if (event.repeat || ([" ", "Enter"].includes(event.key) && event.target.closest("button, summary, a"))) return;
  const key = event.code.startsWith("Digit") ? event.code.slice(-1) : event.key.toLowerCase(); // also with French keys
  const anywhere = { r: () => show(view() === "review" ? "label" : "review"), s: save, escape: () => show("label") };
  const onImage = {
    0: () => answer(""), " ": skip, u: undo, backspace: undo,
    arrowleft: () => go(state.at - 1), arrowright: () => go(state.at + 1),
  };
  const name = classes()[CLASS_KEYS.indexOf(key)];
  let action = anywhere[key];
  if (view() === "label") action ??= onImage[key] ?? (name === undefined ? undefined : () => answer(name));
  if (!action) return;
  event.preventDefault();
  action();
}

document.addEventListener("keydown", pressed);
// A button that was clicked does not take the focus, or the next Space would press it again.
document.addEventListener("mousedown", (event) => {
  if (event.target.closest("button")) event.preventDefault();
});
for (const button of document.querySelectorAll("[data-view]")) button.onclick = () => show(button.dataset.view);
for (const button of document.querySelectorAll("[data-save]")) button.onclick = save;
byId("unsure").onclick = () => answer("");
byId("skip").onclick = skip;
byId("undo").onclick = undo;
byId("image").onload = sharpen;
byId("add").onsubmit = (event) => {
  event.preventDefault();
  addClass(byId("name").value);
  byId("name").value = "";
};
// The same page in another tab has stored an answer; and a page that cannot store must not be closed by mistake.
addEventListener("storage", (event) => {
  if (event.key !== data.key) return;
  state = restored();
  renderClasses();
  render();
});
addEventListener("beforeunload", (event) => {
  if (!byId("unkept").hidden && state.changes) event.preventDefault();
});

keep();
renderClasses();
if (unanswered().length) render();
else show("finish");
