// The page: upload a clip from a file, the camera or the samples, follow its progress, and show its result.

const byId = (id) => document.getElementById(id);
const NO_SERVER = "The server does not respond. Is it still running?";
const isNarrow = () => matchMedia("(max-width: 899px)").matches;
const SVG = "http://www.w3.org/2000/svg";
const CHART_WIDTH = 1000, CHART_HEIGHT = 100; // of the view box, which is stretched to the element
let about = null; // description of the model
let current = null; // the clip in progress or on display: { id, cancel }

class UserError extends Error {} // its message is shown to the user

// Upload a clip, or select a sample, and resolve to the id of the job. `onProgress` receives the uploaded fraction.
function upload(clip, name, sample, signal, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report upload progress
    const query = sample ? { sample: sample.file } : { name };
    request.open("POST", `/clips?${new URLSearchParams(query)}`);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 201) resolve(request.response.id);
      else reject(new UserError(request.response?.message ?? `The server responded with status ${request.status}.`));
    };
    request.onerror = () => reject(new Error("no response"));
    signal.addEventListener("abort", () => {
      request.abort();
      reject(new Error("canceled"));
    });
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(clip);
  });
}

// Poll the status of a job until it has a result.
async function waitForResult(id, signal, onStatus) {
  for (;;) {
    const response = await fetch(`/clips/${id}`, { signal });
    const status = await response.json();
    if (!response.ok || status.state === "refused") throw new UserError(status.message);
    if (status.state === "done") return status.result;
    onStatus(status);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

// Delete a job on the server. keepalive sends the request even while the page is closing.
function discard(id) {
  fetch(`/clips/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

async function start() {
  try {
    const response = await fetch("/about");
    if (!response.ok) throw new Error();
    about = await response.json();
  } catch {
    return fail(NO_SERVER);
  }
  const model = about.kind === "art" ? `ART with ${about.tracklets} tracklets`
    : about.kind === "probe" ? `Head ${about.head}` : "Backbone";
  byId("about").textContent =
    `${model} on ${about.backbone}, ${about.classes.length} classes, ${about.frames} frames per clip, running on ${about.device}.`;
  byId("limits").textContent =
    `MP4, MOV, WebM, MKV or AVI, up to ${about.limits.megabytes}\u00a0MB and ${about.limits.seconds}\u00a0s.`;
  byId("samples").append(...about.samples.map(sampleButton));
  setUpCamera(about.limits.seconds);
}

function sampleButton(sample) {
  const [item, button, video, title] = ["li", "button", "video", "span"].map((tag) => document.createElement(tag));
  button.type = "button";
  Object.assign(video, { src: `/samples/${sample.file}#t=0.9`, preload: "metadata", muted: true, playsInline: true });
  video.tabIndex = -1;
  video.ariaHidden = "true";
  title.textContent = sample.title;
  button.append(video, title);
  button.addEventListener("click", () => process(null, sample.file, sample));
  item.append(button);
  return item;
}

async function process(clip, name, sample = null) {
  leave();
  if (!about) return fail(NO_SERVER);
  if (clip && clip.size > about.limits.bytes) {
    const size = (clip.size / 1e6).toFixed(1);
    return fail(`“${name}” is larger than the limit of ${about.limits.megabytes} MB (${size} MB). Trim the clip, or save it at a lower resolution.`);
  }
  show("progress");
  const uploading = clip ? "Uploading the clip…" : "Starting…";
  showProgress(uploading, 0);
  const cancel = new AbortController();
  const job = (current = { cancel, id: null });
  try {
    job.id = await upload(clip, name, sample, cancel.signal, (fraction) => showProgress(uploading, fraction));
    if (cancel.signal.aborted) return discard(job.id);
    const result = await waitForResult(job.id, cancel.signal, (status) => showProgress(describe(status)));
    if (current !== job) return;
    show("result");
    const title = showResult(byId("result"), result, job.id, sample);
    title.focus({ preventScroll: true });
    if (isNarrow()) title.scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    if (cancel.signal.aborted || current !== job) return;
    fail(error instanceof UserError ? error.message : NO_SERVER);
  }
}

function describe({ state, step, ahead }) {
  if (state === "waiting" && ahead) return `Waiting: ${ahead} ${ahead === 1 ? "clip" : "clips"} ahead of yours`;
  return `${step || "Starting"}…`;
}

function showProgress(text, fraction = null) {
  if (byId("step").textContent !== text) byId("step").textContent = text;
  if (fraction === null || fraction >= 1) byId("bar").removeAttribute("value");
  else byId("bar").value = fraction;
}

function show(id) {
  for (const other of ["problem", "progress", "empty", "result"]) byId(other).hidden = other !== id;
  if (id !== "result") byId("result").replaceChildren();
  if (id === "progress" && isNarrow()) byId("progress").scrollIntoView({ block: "nearest" });
}

function fail(message) {
  byId("problem").textContent = message;
  show("problem");
  byId("problem").focus({ preventScroll: true });
  byId("problem").scrollIntoView({ block: "nearest" });
}

// Cancel the current clip, or delete its result.
function leave() {
  if (!current) return;
  current.cancel.abort();
  if (current.id) discard(current.id);
  current = null;
}

function setUpCamera(maxClipSeconds) {
  const MIME_TYPES = ["video/webm;codecs=vp8", "video/webm", "video/mp4"];
  const MIN_SECONDS = 0.5;
  const maxSeconds = Math.min(10, maxClipSeconds * 0.9);
  let stream = null;
  let recorder = null;
  let timer = null;

  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
    byId("camera").hidden = true;
    byId("no-camera").hidden = false;
    return;
  }

  function close() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    byId("recorder").hidden = true;
    byId("camera").hidden = false;
  }

  function stopTimer() {
    clearInterval(timer);
    byId("record").textContent = "Record";
  }

  byId("camera").addEventListener("click", async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 }, audio: false });
    } catch (error) {
      const reasons = { NotAllowedError: "Permission was denied.", NotFoundError: "No camera was found." };
      return fail(`The camera is not available. ${reasons[error.name] ?? "It could not be started."}`);
    }
    byId("preview").srcObject = stream;
    await byId("preview").play();
    byId("recorded").textContent = `up to ${maxSeconds} s`;
    byId("recorder").hidden = false;
    byId("camera").hidden = true;
    byId("record").focus();
  });

  byId("close-camera").addEventListener("click", () => {
    if (recorder?.state === "recording") {
      recorder.onstop = null;
      recorder.stop();
      stopTimer();
    }
    close();
    byId("camera").focus();
  });

  byId("record").addEventListener("click", () => {
    if (recorder?.state === "recording") return recorder.stop();
    const mimeType = MIME_TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    const parts = [];
    recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    recorder.ondataavailable = (event) => parts.push(event.data);
    const began = performance.now();
    const elapsed = () => (performance.now() - began) / 1000;
    recorder.onstop = () => {
      stopTimer();
      if (elapsed() < MIN_SECONDS) {
        byId("recorded").textContent = "The recording was too short.";
        return;
      }
      close();
      const suffix = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
      const clip = new File(parts, `camera.${suffix}`, { type: recorder.mimeType });
      process(clip, clip.name);
    };
    recorder.start();
    byId("record").textContent = "Stop";
    timer = setInterval(() => {
      byId("recorded").textContent = `${elapsed().toFixed(1)} of ${maxSeconds} s`;
      if (elapsed() >= maxSeconds && recorder.state === "recording") recorder.stop();
    }, 100);
  });
}

// The result for a clip: the film, the saliency of the tracklets, the classes and their chart over time.

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A name in text: isolated from the direction of the text around it, and shortened, with the full name as its tooltip.
function named(name) {
  const letters = [...name];
  const short = letters.length > 120 ? `${letters.slice(0, 60).join("")}…${letters.slice(-59).join("")}` : name;
  return make("bdi", { title: name, textContent: short });
}

const percent = (fraction) => `${(100 * fraction).toFixed(fraction > 0.995 || fraction < 0.1 ? 1 : 0)}%`;

// Fill `element`, and return the title, which can be focused.
function showResult(element, result, id, sample) {
  const title = make("h2", { tabIndex: -1 }, "“", named(result.classes[0].name), "”");
  const facts = `: ${result.frames} frames, ${result.seconds.toFixed(1)}\u00a0s, processed in ${result.processing_seconds.toFixed(1)}\u00a0s`;
  const listeners = []; // called with the time of the film, in seconds
  const left = make("div");
  if (result.film) left.append(...film(result, id, listeners));
  left.append(...result.tracklets.map((tracklet) => saliencyStrip(tracklet, result.seconds, listeners)));
  const right = make("div", {}, make("h3", { textContent: "Classes" }), classList(result.classes));
  if (result.timeline) {
    right.append(
      make("h3", { textContent: "Prediction over time" }),
      make("p", { className: "muted small", textContent: "For the part of the clip up to each time." }),
      chart(result.timeline, result.seconds, listeners),
    );
  }
  const columns = left.childElementCount ? [left, right] : [right];
  element.replaceChildren(
    make("div", { className: "prediction" }, title, make("strong", { textContent: percent(result.classes[0].probability) })),
    make("p", { className: "muted small" }, named(result.clip), facts),
    ...(sample ? [make("p", { className: "muted small", textContent: `True class of the sample: “${sample.title}”` })] : []),
    make("div", { className: `columns${columns.length > 1 ? " two" : ""}` }, ...columns),
    make("ul", { className: "notes" }, ...result.notes.map((note) => make("li", { textContent: note }))),
    ...(result.film ? [files(result, id)] : []),
  );
  return title;
}

function classList(classes) {
  return make("ol", { className: "classes" }, ...classes.map(({ name, probability }) => {
    const bar = make("i");
    bar.style.width = `${100 * probability}%`;
    return make("li", {}, make("span", {}, named(name)), make("span", { textContent: percent(probability) }),
      make("span", { className: "track", ariaHidden: "true" }, bar));
  }));
}

// The film has all views next to each other; the page shows one at full width, so that it is large enough on a phone.
function film(result, id, listeners) {
  const { width, height, panels } = result.film;
  const views = [...panels, { title: "Full film", left: 0, top: 0, width, height }];
  const video = make("video", { src: `/clips/${id}/film.mp4`, muted: true, loop: true, playsInline: true, preload: "auto" });
  video.ariaLabel = `The clip with overlays: ${panels.map((panel) => panel.title).join(", ")}`;
  const stage = make("div", { className: "stage" }, video);
  const select = (view) => {
    stage.style.aspectRatio = `${view.width} / ${view.height}`;
    stage.style.maxWidth = `calc(62vh * ${view.width / view.height})`;
    video.style.width = `${(100 * width) / view.width}%`;
    video.style.left = `${(-100 * view.left) / view.width}%`;
    video.style.top = `${(-100 * view.top) / view.height}%`;
  };
  const choices = views.map((view, i) => {
    const input = make("input", { type: "radio", name: "view", checked: i === 0 });
    input.addEventListener("change", () => select(view));
    return make("label", {}, input, view.title);
  });
  select(views[0]);
  const legend = result.tracklets.length
    ? "Tint: response above average. Ring: its center. Box: at least half of its peak. Line: path. The bars below show the weight of each frame."
    : "Yellow: high. Dark: low.";
  return [
    make("fieldset", { className: "views" }, make("legend", { textContent: "View" }), ...choices),
    stage,
    player(video, result.seconds, listeners),
    make("p", { className: "legend muted small", textContent: legend }),
  ];
}

function player(video, seconds, listeners) {
  const toggle = make("button", { type: "button", textContent: "Play" });
  const slider = make("input", { type: "range", min: 0, max: Math.max(seconds, 0.001), step: 0.01, value: 0, ariaLabel: "Time in the clip" });
  const time = make("span", { className: "time" });
  const update = () => {
    const now = Math.min(video.currentTime, seconds);
    slider.value = now;
    time.textContent = `${now.toFixed(1)} / ${seconds.toFixed(1)} s`;
    slider.ariaValueText = `${now.toFixed(1)} seconds`;
    listeners.forEach((listener) => listener(now));
  };
  const animate = () => {
    update();
    if (!video.paused && video.isConnected) requestAnimationFrame(animate);
  };
  toggle.addEventListener("click", () => (video.paused ? video.play().catch(() => {}) : video.pause()));
  video.addEventListener("play", () => ((toggle.textContent = "Pause"), animate()));
  video.addEventListener("pause", () => (toggle.textContent = "Play"));
  video.addEventListener("seeked", update);
  video.addEventListener("error", () => {
    const problem = make("p", { className: "problem card", textContent: "This browser cannot play the film (H.264 in MP4). You can download the files below." });
    video.replaceWith(problem);
  });
  slider.addEventListener("input", () => {
    video.pause();
    video.currentTime = Number(slider.value);
  });
  update();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
  return make("div", { className: "player" }, toggle, slider, time);
}

function saliencyStrip({ color, title, prompt, saliency }, seconds, listeners) {
  const position = (time) => `${(100 * time) / Math.max(seconds, 1e-9)}%`;
  const peak = saliency.reduce((best, frame) => (frame.weight > best.weight ? frame : best));
  const bars = make("div", { className: "strip", role: "img" });
  bars.ariaLabel = `Weight of each frame in this tracklet; highest at ${peak.seconds.toFixed(1)} seconds with ${percent(peak.weight)}`;
  saliency.forEach((frame, i) => {
    const bar = make("i");
    const from = i ? (saliency[i - 1].seconds + frame.seconds) / 2 : 0;
    const to = i + 1 < saliency.length ? (frame.seconds + saliency[i + 1].seconds) / 2 : seconds;
    bar.style.left = position(from);
    bar.style.width = `calc(${position(to - from)} - 2px)`;
    bar.style.height = `${(100 * frame.weight) / peak.weight}%`;
    bar.style.background = color;
    bars.append(bar);
  });
  const cursor = make("b");
  bars.append(cursor);
  listeners.push((now) => (cursor.style.left = `calc(${position(now)} - 1px)`));
  return make("div", { className: "tracklet" },
    make("p", {}, dot(color), named(title), " ",
      prompt === null ? "" : make("span", { className: "muted" }, "(“", named(prompt), "”)")),
    bars);
}

function dot(color) {
  const element = make("span", { className: "dot", ariaHidden: "true" });
  element.style.background = color;
  return element;
}

function chart({ seconds: times, lines }, seconds, listeners) {
  const position = (time) => time / Math.max(seconds, 1e-9);
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${CHART_WIDTH} ${CHART_HEIGHT}`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("role", "img");
  const final = lines.map(({ name, probabilities }) => `${name} ${(100 * probabilities.at(-1)).toFixed(0)}%`);
  drawing.setAttribute("aria-label", `Probabilities over ${seconds.toFixed(1)} seconds, at the end ${final.join(", ")}`);
  for (const level of [0, 0.5, 1]) drawing.append(polyline([[0, level], [1, level]], "var(--line)", 1));
  lines.forEach(({ color, probabilities }, i) => {
    const points = probabilities.map((probability, t) => [position(times[t]), probability]);
    if (points.length === 1) points.unshift([0, points[0][1]]);
    drawing.append(polyline(points, color, i ? 2 : 3.5));
  });
  const cursor = make("b");
  listeners.push((now) => (cursor.style.left = `calc(${100 * position(now)}% - 1px)`));
  const ticks = [0, 50, 100].map((value) => {
    const tick = make("span", { textContent: `${value}%` });
    tick.style.top = `${100 - value}%`;
    return tick;
  });
  const axis = ["0 s", `${seconds.toFixed(1)} s`].map((text) => make("span", { textContent: text }));
  return make("div", { className: "chart" },
    make("div", { className: "plot" }, drawing, cursor, ...ticks),
    make("div", { className: "axis" }, ...axis),
    make("ul", {}, ...lines.map(({ name, color }) => make("li", {}, dot(color), named(name)))));
}

function polyline(points, color, width) {
  const path = document.createElementNS(SVG, "polyline");
  path.setAttribute("points", points.map(([x, y]) => `${x * CHART_WIDTH},${(1 - y) * CHART_HEIGHT}`).join(" "));
  path.setAttribute("fill", "none");
  path.setAttribute("stroke-width", width);
  path.setAttribute("stroke-linejoin", "round");
  path.setAttribute("vector-effect", "non-scaling-stroke");
  path.style.stroke = color;
  return path;
}

function files(result, id) {
  const link = (file, text) => make("a", { className: "button", href: `/clips/${id}/${file}`, download: file, textContent: text });
  const sheet = make("img", { src: `/clips/${id}/sheet.png`, loading: "lazy" });
  sheet.alt = `Contact sheet of ${result.clip}: frames with each tracklet, the backbone's maps, and class probabilities over time`;
  return make("details", {}, make("summary", { textContent: "Contact sheet and downloads" }),
    make("div", { className: "sheet", tabIndex: 0, role: "group", ariaLabel: "Contact sheet" }, sheet),
    make("div", { className: "row files" }, link("film.mp4", "Film (MP4)"), link("film.gif", "Film (GIF)"),
      link("sheet.png", "Contact sheet (PNG)"), link("explanation.json", "Data (JSON)")));
}

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // allows choosing the same file again
  if (file) process(file, file.name);
});
byId("cancel").addEventListener("click", () => {
  leave();
  show("empty");
});
for (const name of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) process(file, file.name);
  });
}
window.addEventListener("pagehide", leave);
window.addEventListener("pageshow", (event) => event.persisted && location.reload());
start();
