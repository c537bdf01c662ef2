// Divides pairs of frames among threads, then follows the matches of each video frame by frame.
#include <algorithm>
#include <memory>

#include "assignment.hpp"
#include "processor.hpp"
#include "threads.hpp"

namespace art {
namespace {

double nanoseconds(const Responses& responses, int64_t pairs) {
  const double size = responses.size;
  return pairs * size * (size * responses.channels / 16 + responses.channels / 4 + 2 * size + 20);
}

// Similarities and ids of the slots of one video; see art_kernels.TrackletLinks.
template <class Real>
void follow(const Responses& responses, double min_similarity, const Links& links, int64_t video) {
  const int size = responses.size, steps = responses.frames - 1;
  const bool counts = min_similarity == min_similarity;
  const Real threshold = static_cast<Real>(min_similarity);
  const int64_t first = video * steps * size;
  const Real* matched = static_cast<const Real*>(links.matched) + first;
  Real* similarity = static_cast<Real*>(links.similarity) + first;
  const int64_t* order = links.order + video * responses.frames * size;
  int64_t* id = links.tracklet_id + video * responses.frames * size;
  for (int k = 0; k < size; ++k) id[k] = k;
  int64_t born = size;
  for (int64_t at = 0; at < static_cast<int64_t>(steps) * size; ++at) {
    similarity[at] = matched[at / size * size + order[at]];
    const bool ends = counts && !(similarity[at] >= threshold);  // written so that NaN ends a tracklet
    id[at + size] = ends ? born++ : id[at];
  }
}

}  // namespace

void compose_on_cpu(const int64_t* matches, int64_t videos, int frames, int size, int64_t* order) {
  for (int64_t video = 0; video < videos; ++video) {
    for (int k = 0; k < size; ++k) *order++ = k;
    for (int frame = 1; frame < frames; ++frame, matches += size)
      for (int k = 0; k < size; ++k, ++order) *order = order[-size] < 0 ? -1 : matches[order[-size]];
  }
}

void link_with(const Processor& processor, const Responses& responses, Method method, double min_similarity,
               const Links& links, int threads) {
  const int64_t pairs = responses.videos * (responses.frames - 1);
  threads = worth(nanoseconds(responses, pairs), threads);
  const size_t scratch = processor.match_frames_bytes(responses.size, method) / sizeof(double) + 1;
  const auto memory = std::make_unique<double[]>(scratch * threads);
  const int64_t piece = std::max<int64_t>(16, pairs / (threads * 16));
  share_out(pairs, piece, threads, [&](int thread, int64_t begin, int64_t end) {
    processor.match_frames(responses, method, links, begin, end, memory.get() + thread * scratch);
  });
  compose_on_cpu(links.matches, responses.videos, responses.frames, responses.size, links.order);
  for (int64_t video = 0; video < responses.videos; ++video) {
    if (responses.dtype == Dtype::float64)
      follow<double>(responses, min_similarity, links, video);
    else
      follow<float>(responses, min_similarity, links, video);
  }
}

void link_on_cpu(
    const Responses& responses, Method method, double min_similarity, const Links& links, int threads) {
  link_with(this_processor(), responses, method, min_similarity, links, threads);
}

}  // namespace art
