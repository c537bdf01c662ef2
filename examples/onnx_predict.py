"""Classify a clip with onnxruntime, PyAV, and NumPy; torch and this package are not required.

    art export --checkpoint runs/motion --format onnx --out motion.onnx
    python examples/onnx_predict.py motion.onnx clip.mp4

The metadata of the file specifies the sampling and the size of the frames. The input is uint8 RGB.
"""

import json
import sys

import av
import numpy as np
import onnxruntime


def sample(count, frames, sampling):
    """Return the indices of the frames that the model uses, of `count` frames."""
    if sampling["kind"] == "sparse":
        return (2 * np.arange(frames) + 1) * count // (2 * frames)  # the centers of equal segments
    start = (max(count - frames * sampling["stride"], 0) + 1) // 2
    return np.minimum(start + sampling["stride"] // 2 + sampling["stride"] * np.arange(frames), count - 1)


def resize_matrix(size, new):
    """Return the matrix [new, size] of antialiased bilinear interpolation."""
    centers = (np.arange(new) + 0.5) * size / new - 0.5
    weights = np.maximum(1 - abs(np.arange(size) - centers[:, None]) / max(size / new, 1), 0)
    return weights / weights.sum(1, keepdims=True)


def main(model, clip):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["art"])
    # Only containers that do not make FFmpeg read other files, as playlists do.
    allowed = {"format_whitelist": "mov,matroska,avi,mpegts", "protocol_whitelist": "file"}
    with av.open(clip, container_options=allowed) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video = np.stack([frames[i] for i in sample(len(frames), facts["num_frames"], facts["sampling"])])
    side = max(1, round(min(video.shape[1:3]) * facts["crop"]["share"]))
    top, left = ((size - side) // 2 for size in video.shape[1:3])
    square, resize = video[:, top : top + side, left : left + side], resize_matrix(side, facts["input_size"])
    video = np.clip(np.round(resize @ square.transpose(0, 3, 1, 2) @ resize.T), 0, 255).astype(np.uint8)
    logits = session.run(["logits"], {"video": video[None]})[0][0]
    exps = np.exp(logits - logits.max())
    for index in np.argsort(-exps)[:5]:
        print(f"{100 * exps[index] / exps.sum():6.2f} %  {facts['class_names'][index]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
