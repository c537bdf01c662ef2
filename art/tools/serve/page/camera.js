// A clip from the camera.
const TYPES = ["video/webm;codecs=vp8", "video/webm", "video/mp4"];
const MOST_SECONDS = 10, LEAST_SECONDS = 0.5;

// `take` is called with the recorded file, `fail` with what to say.
export function setUpCamera(limit, take, fail) {
  const at = (id) => document.getElementById(id);
  const seconds = Math.min(MOST_SECONDS, limit * 0.9);
  let stream = null;
  let recorder = null;

  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
    at("camera").hidden = true;
    at("no-camera").hidden = false;
    return;
  }

  function close() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    at("filming").hidden = true;
    at("camera").hidden = false;
  }

  at("camera").addEventListener("click", async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 }, audio: false });
    } catch (error) {
      const why = { NotAllowedError: "The browser was not allowed to use it", NotFoundError: "None was found" };
      return fail(`The camera cannot be used. ${why[error.name] ?? "It does not start"}.`);
    }
    at("preview").srcObject = stream;
    await at("preview").play();
    at("recorded").textContent = `up to ${seconds} s`;
    at("filming").hidden = false;
    at("camera").hidden = true;
    at("record").focus();
  });
  at("close-camera").addEventListener("click", () => {
    if (recorder?.state === "recording") {
      recorder.onstop = null;
      recorder.stop();
      ended();
    }
    close();
    at("camera").focus();
  });

  let clock = null;
  function ended() {
    clearInterval(clock);
    at("record").textContent = "Record";
  }

  at("record").addEventListener("click", () => {
    if (recorder?.state === "recording") return recorder.stop();
    const type = TYPES.find((candidate) => MediaRecorder.isTypeSupported(candidate));
    const parts = [];
    recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
    recorder.ondataavailable = (event) => parts.push(event.data);
    const begun = performance.now();
    recorder.onstop = () => {
      ended();
      if (performance.now() - begun < 1000 * LEAST_SECONDS) {
        at("recorded").textContent = "That was too short.";
        return;
      }
      close();
      const suffix = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
      take(new File(parts, `camera.${suffix}`, { type: recorder.mimeType }));
    };
    recorder.start();
    at("record").textContent = "Stop";
    clock = setInterval(() => {
      const passed = (performance.now() - begun) / 1000;
      at("recorded").textContent = `${passed.toFixed(1)} of ${seconds} s`;
      if (passed >= seconds && recorder.state === "recording") recorder.stop();
    }, 100);
  });
}
