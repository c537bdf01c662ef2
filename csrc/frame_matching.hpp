// Adjacent frames on one thread: cosines of all pairs of responses, and their matching.
#pragma once

#include <cstddef>
#include <cstdint>

#include "assignment.hpp"
#include "assignment_batch.hpp"
#include "cosines.hpp"

namespace art::ART_TARGET {

// Pairs of frames whose cosines are computed before solving, because small problems are solved several at a time.
inline int64_t pairs_at_once(int size) {
  const int64_t fit = 4096 / (static_cast<int64_t>(size) * size);
  return fit < 1 ? 1 : fit;
}

inline size_t match_frames_bytes(int size, Method method) {
  const size_t cosines = pairs_at_once(size) * size * size, norms = 2 * size;
  return (cosines + norms) * sizeof(double) + solve_bytes(size, size, method);
}

template <class Real>
void match_frames_of(
    const Responses& responses, Method method, const Links& links, int64_t begin, int64_t end, void* memory) {
  const int size = responses.size, steps = responses.frames - 1;
  const int64_t numbers = static_cast<int64_t>(size) * size, at_once = pairs_at_once(size);
  double* norms = static_cast<double*>(memory);
  Real* cosines = reinterpret_cast<Real*>(norms + 2 * size);
  void* rest = norms + 2 * size + at_once * numbers;
  const Dtype dtype = sizeof(Real) == sizeof(double) ? Dtype::float64 : Dtype::float32;
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t count = end - first < at_once ? end - first : at_once;
    for (int64_t index = 0; index < count; ++index) {
      const int64_t video = (first + index) / steps, frame = (first + index) % steps;
      const Real* here = static_cast<const Real*>(responses.values) + video * responses.stride_video +
                         frame * responses.stride_frame;
      const Frames<Real> frames{here, here + responses.stride_frame, responses.stride_response, size,
                                responses.channels};
      take_cosines(frames, reinterpret_cast<Real*>(norms), cosines + index * numbers);
    }
    int64_t* matches = links.matches + first * size;
    solve({cosines, dtype, count, size, size, true, method, matches, responses.tie}, 0, count, rest);
    Real* matched = static_cast<Real*>(links.matched) + first * size;
    for (int64_t row = 0; row < count * size; ++row) matched[row] = cosine_of(cosines[row * size + matches[row]]);
  }
}

inline void match_frames(
    const Responses& responses, Method method, const Links& links, int64_t begin, int64_t end, void* memory) {
  if (responses.dtype == Dtype::float64)
    match_frames_of<double>(responses, method, links, begin, end, memory);
  else
    match_frames_of<float>(responses, method, links, begin, end, memory);
}

}  // namespace art::ART_TARGET
