"use strict";
// Charts are drawn when they come near the window, in the colors of the page. The rest is a slider, and the images of a place in a chart.
const dark = matchMedia("(prefers-color-scheme: dark)");

function layoutOf(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = (own) => ({ gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...own });
  return {
    margin: { l: 48, r: 8, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 12 }, dragmode: false, hoverlabel: { font: { size: 12 } }, ...layout,
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
  };
}

function beside(panel, hover, places, words) {
  panel.replaceChildren();
  for (const place of places) {
    const image = document.createElement("img");
    image.src = hover.images[place];
    image.alt = hover.captions[place];
    panel.append(image);
  }
  const text = document.createElement("span");
  text.textContent = places.map((place) => hover.captions[place]).join(" | ") + words;
  panel.append(text);
}

function watch(plot, spec, panel) {
  const { hover, data } = spec;
  const ends = hover.images.length - 1;
  let [row, column] = [0, hover.kind === "pair" ? 1 : 0];
  const show = () => {
    if (hover.kind === "pair") beside(panel, hover, [row, column], `: cosine ${data[0].z[row][column].toFixed(2)}`);
    else beside(panel, hover, [column], "");
  };
  plot.on("plotly_hover", ({ points: [point] }) => {
    if (hover.kind === "pair") [row, column] = [point.y, point.x];
    else column = point.customdata;
    show();
  });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const within = (at) => Math.max(0, Math.min(ends, at));
    if (hover.kind === "pair") row = within(row + step[0]);
    column = within(column + step[1] + (hover.kind === "pair" ? 0 : step[0]));
    show();
  });
}

function draw(plot) {
  const figure = plot.closest("figure");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  Plotly.newPlot(plot, spec.data, layoutOf(spec.layout), { displayModeBar: false, responsive: true });
  if (spec.hover.kind) watch(plot, spec, figure.querySelector(".beside"));
  dark.addEventListener("change", () => Plotly.react(plot, spec.data, layoutOf(spec.layout)));
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    draw(target);
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".plot").forEach((plot) => near.observe(plot));

const slider = document.getElementById("strength");
if (slider) {
  const stages = [...document.querySelectorAll(".strength")];
  slider.addEventListener("input", () => {
    stages.forEach((stage, number) => { stage.hidden = number !== Number(slider.value); });
    document.getElementById("strength-now").value = stages[slider.value].dataset.strength;
  });
}
