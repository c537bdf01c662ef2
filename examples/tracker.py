"""`link_tracklets` as the association step of a small tracker.

    python examples/tracker.py

A detector returns a feature vector for each box, in a different order in every frame. Linking by the similarity of
adjacent frames determines which box continues which track; below `min_similarity` a track ends and a new one starts.
The boxes are synthetic: five objects drift, and halfway one leaves and another appears.
"""

import torch
import torch.nn.functional as F

from art_kernels import gather_tracklets, link_tracklets

OBJECTS, FRAMES, CHANNELS, LEAVES = 5, 40, 32, 20


def detections(generator):
    """Return features [1,T,K,C], box centers [1,T,K,2], and the true object of each box [1,T,K]."""
    appearances = F.normalize(torch.randn(OBJECTS + 1, CHANNELS, generator=generator), dim=-1)
    starts, speeds = torch.rand(OBJECTS + 1, 2, generator=generator), torch.randn(OBJECTS + 1, 2, generator=generator)
    features, centers, truth = [], [], []
    for t in range(FRAMES):
        present = list(range(OBJECTS))
        if t >= LEAVES:
            present[0] = OBJECTS  # the first object has left, the last has appeared
        objects = torch.tensor(present)[torch.randperm(OBJECTS, generator=generator)]
        noise = 0.05 * torch.randn(OBJECTS, CHANNELS, generator=generator)
        features.append(appearances[objects] + noise)
        centers.append(starts[objects] + 0.01 * t * speeds[objects])
        truth.append(objects)
    return torch.stack(features)[None], torch.stack(centers)[None], torch.stack(truth)[None]


def identity_switches(truth, track_of):
    """Count the changes of an object's track between adjacent frames."""
    count = 0
    previous = {}
    for objects, tracks in zip(truth[0].tolist(), track_of[0].tolist(), strict=True):
        current = dict(zip(objects, tracks, strict=True))
        count += sum(previous[key] != track for key, track in current.items() if key in previous)
        previous = current
    return count


def main():
    features, centers, truth = detections(torch.Generator().manual_seed(0))
    links = link_tracklets(features, method="optimal", min_similarity=0.5)
    linked = gather_tracklets(truth, links.order)  # works for boxes, scores, and masks too
    paths = gather_tracklets(centers, links.order)
    steps = (paths[:, 1:] - paths[:, :-1]).norm(dim=-1)
    same = links.tracklet_id[:, 1:] == links.tracklet_id[:, :-1]
    unlinked = torch.arange(OBJECTS).expand(1, FRAMES, -1)
    print(f"tracks: {int(links.tracklet_id.max()) + 1}, of {OBJECTS + 1} objects")
    switches, unlinked_switches = identity_switches(linked, links.tracklet_id), identity_switches(truth, unlinked)
    print(f"identity switches: {switches}, without linking {unlinked_switches}")
    print(f"longest step within a track: {steps[same].max().item():.3f}")


if __name__ == "__main__":
    main()
