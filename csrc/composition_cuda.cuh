// Follows the matches of adjacent frames through each video, one block per video: orders, similarities and tracklet
// ids.
//
// Frames depend on each other, so all threads first load the matches of many frames into shared memory.
#pragma once

#include "device.cuh"

namespace art {

// Arguments. Without `links`, only `order` is written.
struct Composition {
  const int64_t* matches;  // [videos, frames - 1, size]
  int64_t* order;          // [videos, frames, size]
  int64_t videos;
  int frames;
  int size;
  bool links;
  bool wide;  // `matched` and `similarity` are float64
  const void* matched;
  void* similarity;
  int64_t* tracklet_id;
  double min_similarity;  // NaN: no tracklet ends

  // Matches loaded into shared memory at a time: whole frames, at most all of them.
  __host__ __device__ int at_once() const {
    constexpr int kMost = 4096;
    return frames - 1 < kMost / size ? (frames - 1) * size : kMost / size * size;
  }
};

constexpr int kComposeThreads = 256;

// A chunk of frames in shared memory.
struct Chunk {
  int16_t* matches;
  int16_t* order;  // of the frame before each match
  int8_t* ended;

  static constexpr int kBytes = 2 * sizeof(int16_t) + sizeof(int8_t);  // per match

  __device__ static Chunk of(int count) {
    auto* numbers = reinterpret_cast<int16_t*>(dynamic_shared_memory());
    return {numbers, numbers + count, reinterpret_cast<int8_t*>(numbers + 2 * count)};
  }
};

// Each slot follows the matches. After a frame without matches (-1), the slot is undefined.
__device__ inline int follow(const Chunk& chunk, int frames, int size, int response) {
  for (int f = 0; f < frames; ++f) {
    chunk.order[f * size + static_cast<int>(threadIdx.x)] = static_cast<int16_t>(response);
    response = response < 0 ? -1 : chunk.matches[f * size + response];
  }
  return response;
}

// Similarities of the slots, from those of the responses of the earlier frame.
template <class Real>
__device__ void write_similarity(const Composition& c, const Chunk& chunk, int64_t first, int count) {
  const Real threshold = static_cast<Real>(c.min_similarity);
  const Real* matched = static_cast<const Real*>(c.matched) + first;
  Real* similarity = static_cast<Real*>(c.similarity) + first;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += static_cast<int>(blockDim.x)) {
    const Real value = matched[e / c.size * c.size + chunk.order[e]];
    similarity[e] = value;
    chunk.ended[e] = !(value >= threshold);  // written so that NaN ends a tracklet
  }
}

// Numbers the tracklets that start in a chunk, frame by frame, in one warp; `id` and `next` are carried over.
constexpr int kIdSlots = (kMaxLinked + kWarp - 1) / kWarp;

__device__ inline void write_ids(
    const Chunk& chunk, int frames, int size, int64_t* tracklet_id, int64_t (&id)[kIdSlots], int64_t& next) {
  const int lane = static_cast<int>(threadIdx.x);
  for (int f = 0; f < frames; ++f) {
#pragma unroll
    for (int s = 0; s < kIdSlots; ++s) {
      const int slot = s * kWarp + lane;
      const bool born = slot < size && chunk.ended[f * size + slot] != 0;
      const unsigned births = __ballot_sync(kAllLanes, born);
      if (born) id[s] = next + __popc(births & ((1u << lane) - 1u));
      next += __popc(births);
      if (slot < size) tracklet_id[static_cast<int64_t>(f) * size + slot] = id[s];
    }
  }
}

__device__ inline void compose_video(const Composition& c, int64_t video) {
  const Chunk chunk = Chunk::of(c.at_once());
  const int thread = static_cast<int>(threadIdx.x);
  const int most = c.at_once() / c.size;
  const bool counts = c.min_similarity == c.min_similarity;
  const int64_t first_match = video * (c.frames - 1) * c.size;
  const int64_t first_order = video * c.frames * c.size;
  int response = thread;
  int64_t next = c.size;
  int64_t id[kIdSlots];
#pragma unroll
  for (int s = 0; s < kIdSlots; ++s) id[s] = s * kWarp + thread;

  for (int frame = 0; frame < c.frames - 1; frame += most) {
    const int frames = c.frames - 1 - frame < most ? c.frames - 1 - frame : most;
    const int count = frames * c.size;
    const int64_t before = static_cast<int64_t>(frame) * c.size;
    for (int e = thread; e < count; e += static_cast<int>(blockDim.x)) {
      chunk.matches[e] = static_cast<int16_t>(c.matches[first_match + before + e]);
    }
    __syncthreads();
    if (thread < c.size) response = follow(chunk, frames, c.size, response);
    __syncthreads();
    for (int e = thread; e < count; e += static_cast<int>(blockDim.x)) {
      c.order[first_order + before + e] = chunk.order[e];
    }
    if (c.links && c.wide) write_similarity<double>(c, chunk, first_match + before, count);
    if (c.links && !c.wide) write_similarity<float>(c, chunk, first_match + before, count);
    __syncthreads();
    if (!c.links) continue;
    int64_t* tracklet_id = c.tracklet_id + first_order + before + c.size;
    if (!counts) {
      for (int e = thread; e < count; e += static_cast<int>(blockDim.x)) tracklet_id[e] = e % c.size;
    } else if (thread < kWarp) {
      write_ids(chunk, frames, c.size, tracklet_id, id, next);
    }
  }
  if (thread < c.size) {
    c.order[first_order + static_cast<int64_t>(c.frames - 1) * c.size + thread] = response;
    if (c.links) c.tracklet_id[first_order + thread] = thread;
  }
}

__global__ void __launch_bounds__(kComposeThreads, 1) compose(Composition composition) {
  for (int64_t video = blockIdx.x; video < composition.videos; video += gridDim.x) compose_video(composition, video);
}

inline Composition composition_of(const int64_t* matches, int64_t videos, int frames, int size, int64_t* order) {
  return {matches, order, videos, frames, size, false, false, nullptr, nullptr, nullptr, 0.0};
}

inline Composition composition_of(const Responses& responses, double min_similarity, const Links& links) {
  return {links.matches, links.order, responses.videos, responses.frames, responses.size, true,
          responses.dtype == Dtype::float64, links.matched, links.similarity, links.tracklet_id, min_similarity};
}

inline Launch launch_of_composition(const Composition& composition) {
  constexpr int64_t kMostBlocks = 1 << 30;
  const int64_t numbers = static_cast<int64_t>(composition.frames) * composition.size;
  const int64_t wanted = composition.size > numbers / 4 ? composition.size : numbers / 4;  // a thread may handle several
  const int64_t warps = wanted >= kComposeThreads ? kComposeThreads / kWarp : blocks_for(wanted, kWarp);
  const int64_t blocks = composition.videos < kMostBlocks ? composition.videos : kMostBlocks;
  return {blocks, static_cast<int>(warps) * kWarp, composition.at_once() * Chunk::kBytes};
}

}  // namespace art
