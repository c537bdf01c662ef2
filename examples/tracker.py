"""`link_tracklets` as the association step of a small tracker.

    python examples/tracker.py

A detector gives a feature vector for each of its boxes, in another order in every frame. Linking by likeness of
adjacent frames finds which box continues which track; a track ends where the likeness falls below `min_similarity`, and
a new one begins there. Boxes here are made up: five objects drift, and one leaves halfway while another comes.
"""

import torch
import torch.nn.functional as F

from art_kernels import gather_tracklets, link_tracklets

OBJECTS, FRAMES, CHANNELS, LEAVES = 5, 40, 32, 20


def detections(generator):
    """Features [1,T,K,C], box centres [1,T,K,2] and, to judge by, the true object of each box [1,T,K]."""
    looks = F.normalize(torch.randn(OBJECTS + 1, CHANNELS, generator=generator), dim=-1)
    starts, speeds = torch.rand(OBJECTS + 1, 2, generator=generator), torch.randn(OBJECTS + 1, 2, generator=generator)
    features, centres, truth = [], [], []
    for t in range(FRAMES):
        present = list(range(OBJECTS))
        if t >= LEAVES:
            present[0] = OBJECTS  # the first has left, the last has come
        objects = torch.tensor(present)[torch.randperm(OBJECTS, generator=generator)]
        noise = 0.05 * torch.randn(OBJECTS, CHANNELS, generator=generator)
        features.append(looks[objects] + noise)
        centres.append(starts[objects] + 0.01 * t * speeds[objects])
        truth.append(objects)
    return torch.stack(features)[None], torch.stack(centres)[None], torch.stack(truth)[None]


def switches(truth, track_of):
    """How often an object's track changes from one frame to the next."""
    count = 0
    former = {}
    for objects, tracks in zip(truth[0].tolist(), track_of[0].tolist(), strict=True):
        now = dict(zip(objects, tracks, strict=True))
        count += sum(former[one] != track for one, track in now.items() if one in former)
        former = now
    return count


def main():
    features, centres, truth = detections(torch.Generator().manual_seed(0))
    links = link_tracklets(features, method="optimal", min_similarity=0.5)
    linked = gather_tracklets(truth, links.order)  # boxes, scores and masks are put into tracks in the same way
    paths = gather_tracklets(centres, links.order)
    steps = (paths[:, 1:] - paths[:, :-1]).norm(dim=-1)
    same = links.tracklet_id[:, 1:] == links.tracklet_id[:, :-1]
    unlinked = torch.arange(OBJECTS).expand(1, FRAMES, -1)
    print(f"tracks: {int(links.tracklet_id.max()) + 1}, of {OBJECTS + 1} objects")
    print(
        f"identity switches: {switches(linked, links.tracklet_id)}, of boxes as they come {switches(truth, unlinked)}"
    )
    print(f"longest step within a track: {steps[same].max().item():.3f}")


if __name__ == "__main__":
    main()
