// The answer to a clip: its film, the tracklets, the classes.
import { chart } from "./chart.js";

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share < 0.1 ? 1 : 0)} %`;

// Fill `place`, and give the title, which may be focused.
export function showResult(place, answer, id, sample) {
  const title = make("h2", { tabIndex: -1, textContent: `“${answer.classes[0].name}”` });
  const facts = `${answer.clip}: ${answer.frames} frames, ${answer.seconds.toFixed(1)} s; looked at in ${answer.took.toFixed(1)} s`;
  const watchers = []; // each is told the time of the film, in seconds
  const left = make("div");
  if (answer.film) left.append(...film(answer, id, watchers));
  left.append(...answer.tracklets.map((tracklet, k) => strip(tracklet, k, answer.seconds, watchers)));
  const right = make("div", {}, make("h3", { textContent: "Classes" }), classes(answer.classes));
  if (answer.over_time) {
    right.append(make("h3", { textContent: "The answer had the clip ended earlier" }), chart(answer.over_time, answer.seconds, watchers));
  }
  const notes = make("ul", { className: "notes" }, ...answer.notes.map((note) => make("li", { textContent: note })));
  place.replaceChildren(
    make("div", { className: "said" }, title, make("strong", { textContent: percent(answer.classes[0].share) })),
    make("p", { className: "muted small", textContent: facts }),
    ...(sample ? [make("p", { className: "muted small", textContent: `The sample shows “${sample.title}”.` })] : []),
    make("div", { className: left.childElementCount ? "columns two" : "columns" }, ...(left.childElementCount ? [left] : []), right),
    notes,
    ...(answer.film ? [files(answer, id)] : []),
  );
  return title;
}

function classes(all) {
  return make("ol", { className: "classes" }, ...all.map(({ name, share }) => {
    const bar = make("i");
    bar.style.width = `${100 * share}%`;
    return make("li", {}, make("span", { textContent: name }), make("span", { textContent: percent(share) }),
      make("span", { className: "track", ariaHidden: "true" }, bar));
  }));
}

// The film shows all views side by side; here one of them fills the width, so that a phone shows it, too.
function film(answer, id, watchers) {
  const { width, height, panels } = answer.film;
  const views = [...panels, { title: "Whole film", left: 0, top: 0, width, height }];
  const video = make("video", { src: `/clips/${id}/film.mp4`, muted: true, loop: true, playsInline: true, preload: "auto" });
  video.ariaLabel = `The clip with what the model looks at: ${panels.map((panel) => panel.title).join(", ")}`;
  const stage = make("div", { className: "stage" }, video);
  const look = (view) => {
    stage.style.aspectRatio = `${view.width} / ${view.height}`;
    stage.style.maxWidth = `calc(62vh * ${view.width / view.height})`;
    video.style.width = `${(100 * width) / view.width}%`;
    video.style.left = `${(-100 * view.left) / view.width}%`;
    video.style.top = `${(-100 * view.top) / view.height}%`;
  };
  const choices = views.map((view, i) => {
    const input = make("input", { type: "radio", name: "view", checked: i === 0 });
    input.addEventListener("change", () => look(view));
    return make("label", {}, input, view.title);
  });
  look(views[0]);
  const says = answer.tracklets.length
    ? "Tint: response above average; ring: its centre; box: at least half its peak; line: path. Bars below: how much each frame weighs in the tracklet."
    : "Yellow: most, dark: least.";
  return [
    make("fieldset", { className: "views" }, make("legend", { textContent: "What the film shows" }), ...choices),
    stage,
    player(video, answer.seconds, watchers),
    make("p", { className: "legend muted small", textContent: says }),
  ];
}

function player(video, seconds, watchers) {
  const toggle = make("button", { type: "button", textContent: "Play" });
  const place = make("input", { type: "range", min: 0, max: Math.max(seconds, 0.001), step: 0.01, value: 0, ariaLabel: "Time in the clip" });
  const time = make("span", { className: "time" });
  const tell = () => {
    const now = Math.min(video.currentTime, seconds);
    place.value = now;
    time.textContent = `${now.toFixed(1)} / ${seconds.toFixed(1)} s`;
    place.ariaValueText = `${now.toFixed(1)} seconds`;
    watchers.forEach((watch) => watch(now));
  };
  const run = () => {
    tell();
    if (!video.paused && video.isConnected) requestAnimationFrame(run);
  };
  toggle.addEventListener("click", () => (video.paused ? video.play().catch(() => {}) : video.pause()));
  video.addEventListener("play", () => ((toggle.textContent = "Pause"), run()));
  video.addEventListener("pause", () => (toggle.textContent = "Play"));
  video.addEventListener("seeked", tell);
  video.addEventListener("error", () => {
    const problem = make("p", { className: "problem card", textContent: "This browser cannot play the film (H.264 in MP4). The files below can be saved." });
    video.replaceWith(problem);
  });
  place.addEventListener("input", () => {
    video.pause();
    video.currentTime = Number(place.value);
  });
  tell();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
  return make("div", { className: "player" }, toggle, place, time);
}

function strip({ colour, class: name, prompt, saliency }, k, seconds, watchers) {
  const dot = make("span", { className: "dot", ariaHidden: "true" });
  dot.style.background = colour;
  const most = Math.max(...saliency.map(({ share }) => share));
  const peak = saliency.find(({ share }) => share === most);
  const bars = make("div", { className: "strip", role: "img" });
  bars.ariaLabel = `How much each frame weighs in this tracklet; most, ${percent(most)}, at ${peak.at.toFixed(1)} seconds`;
  saliency.forEach(({ at, share }, i) => {
    const bar = make("i");
    const from = i ? (saliency[i - 1].at + at) / 2 : 0;
    const to = i + 1 < saliency.length ? (at + saliency[i + 1].at) / 2 : seconds;
    bar.style.left = `${(100 * from) / Math.max(seconds, 1e-9)}%`;
    bar.style.width = `calc(${(100 * (to - from)) / Math.max(seconds, 1e-9)}% - 2px)`;
    bar.style.height = `${(100 * share) / most}%`;
    bar.style.background = colour;
    bars.append(bar);
  });
  const cursor = make("b");
  bars.append(cursor);
  watchers.push((now) => (cursor.style.left = `calc(${(100 * now) / Math.max(seconds, 1e-9)}% - 1px)`));
  return make("div", { className: "tracklet" },
    make("p", {}, dot, `Tracklet ${k + 1} asks for “${name}” `, make("span", { className: "muted", textContent: `(“${prompt}”)` })),
    bars);
}

function files(answer, id) {
  const link = (file, text) => make("a", { className: "button", href: `/clips/${id}/${file}`, download: file, textContent: text });
  const sheet = make("img", { src: `/clips/${id}/sheet.png`, loading: "lazy" });
  sheet.alt = `Contact sheet of ${answer.clip}: frames of the clip with each tracklet, the backbone's maps and class probabilities over time`;
  return make("details", {}, make("summary", { textContent: "Contact sheet and files" }),
    make("div", { className: "sheet", tabIndex: 0, role: "group", ariaLabel: "Contact sheet" }, sheet),
    make("div", { className: "row files" }, link("film.mp4", "Film (MP4)"), link("film.gif", "Film (GIF)"),
      link("sheet.png", "Contact sheet (PNG)"), link("explanation.json", "Numbers (JSON)")));
}
