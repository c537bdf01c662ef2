// Upload a clip from a file, the camera or the samples, and follow its progress until the result.
import { showResult } from "./result.js";

const byId = (id) => document.getElementById(id);
const NO_SERVER = "The server does not respond. Is it still running?";
const isNarrow = () => matchMedia("(max-width: 899px)").matches;
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
  const model = about.kind === "art" ? `ART with ${about.tracklets} tracklets` : "Backbone";
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
