"use strict";
// What a chart shows for a place in it, by pointer and by keys; a slider; the entry of the contents that is on the screen.
const batch = document.getElementById("batch");
const views = batch ? JSON.parse(batch.textContent) : {};

function beside(panel, images, words) {
  panel.replaceChildren();
  for (const [src, alt] of images) panel.append(Object.assign(document.createElement("img"), { src, alt }));
  panel.append(Object.assign(document.createElement("span"), { textContent: words }));
}

// The arrow keys move a place (row, column) within `rows` and `columns`.
function withKeys(plot, place, rows, columns, show) {
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    place[0] = Math.max(0, Math.min(rows - 1, place[0] + step[0]));
    place[1] = Math.max(0, Math.min(columns - 1, place[1] + step[1]));
    show();
  });
}

document.querySelectorAll("figure.matrix").forEach((figure) => {
  const [plot, panel] = [figure.querySelector(".plot"), figure.querySelector(".beside")];
  const hover = JSON.parse(figure.querySelector("script").textContent);
  const { values } = hover;
  const captions = hover.captions || views.captions;
  const place = [0, 1];
  const show = () => {
    const value = values[place[0]][place[1]];
    const images = hover.captions ? [] : place.map((k) => [views.images[k], captions[k]]);
    const words = hover.captions ? `is ${captions[place[0]]}, taken for ${captions[place[1]]}: ${(value / 10).toFixed(1)} %`
      : `${captions[place[0]]} | ${captions[place[1]]}: cosine ${(value / 1000).toFixed(2)}`;
    beside(panel, images, words);
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = (share) => Math.max(0, Math.min(values.length - 1, Math.floor(share * values.length)));
    place[0] = at((event.clientY - box.top) / box.height);
    place[1] = at((event.clientX - box.left) / box.width);
    show();
  });
  withKeys(plot, place, values.length, values.length, show);
});

document.querySelectorAll("figure.map").forEach((figure) => {
  const [plot, panel] = [figure.querySelector(".plot"), figure.querySelector(".beside")];
  const tiles = [...plot.querySelectorAll(".tile")];
  const place = [0, -1];
  const show = () => {
    tiles.forEach((tile, k) => tile.classList.toggle("now", k === place[1]));
    const tile = tiles[place[1]];
    const words = tile.querySelector("title").textContent;
    beside(panel, [[tile.querySelector("image").getAttribute("href"), words]], words);
  };
  plot.addEventListener("pointerover", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    place[1] = tiles.indexOf(tile);
    show();
  });
  withKeys(plot, place, 1, tiles.length, show);
});

const slider = document.getElementById("strength");
if (slider) {
  const stages = [...document.querySelectorAll(".strength")];
  slider.addEventListener("input", () => {
    stages.forEach((stage, number) => { stage.hidden = number !== Number(slider.value); });
    document.getElementById("strength-now").value = stages[slider.value].dataset.strength;
  });
}

const entries = new Map([...document.querySelectorAll("nav li a")].map((link) => [link.hash.slice(1), link]));
const headings = [...entries.keys()].map((id) => document.getElementById(id));
const TOP = 120; // px from the top of the window: a heading above is that of the part one reads
let waiting = false;
function mark() {
  waiting = false;
  const passed = headings.filter((heading) => heading.getBoundingClientRect().top < TOP);
  const now = entries.get((passed.at(-1) || headings[0]).id);
  for (const link of entries.values()) {
    if (link === now) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(mark); } }, { passive: true });
mark();

// Paper cannot be unfolded: it has all but the numbers of the charts, which it shows. Afterward the page is as it was.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open], .numbers)")];
  for (const one of unfolded) one.open = true;
});
addEventListener("afterprint", () => { for (const one of unfolded) one.open = false; });
