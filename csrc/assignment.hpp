// Batched linear assignment and tracklet linking: the interface between the solvers and their callers.
//
// The code is independent of torch: it takes pointers, sizes, dtypes and a stream. Tensors are contiguous unless
// strides are given, strides count elements, and functions check only what the caller cannot (the values of costs).
#pragma once

#include <cstdint>

namespace art {

enum class Dtype : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3, int64 = 4 };

// How the rows of a matrix are matched one to one to its columns.
//   optimal: the minimal sum of costs; the smaller side is fully matched.
//   greedy:  the smallest cost first, then the smallest among the remaining rows and columns; of equal costs the one in
//            the lowest row, then in the lowest column. For square matrices of finite costs.
enum class Method : int { optimal = 0, greedy = 1 };

// Most rows or columns on CUDA devices; the CPU has no limit.
constexpr int kMaxSize = 256;
// Up to this size all matchings are compared.
constexpr int kMaxEnumerated = 4;

// `count` problems with at least one row and one column. Row i of problem p goes to columns[p * rows + i], or to none:
// -1. Sums and dual variables are in float64, which represents costs of every floating-point dtype exactly, and in
// 128-bit integers for int64 (only on the CPU, only optimal).
//
// A cost of +inf (-inf when maximizing) forbids a pair. A problem without a solution, because a cost is NaN or the other
// infinity, or because forbidden pairs leave no matching of the whole smaller side, has -1 in all its rows.
struct Problems {
  const void* cost;  // [count, rows, cols]
  Dtype dtype;
  int64_t count;
  int rows, cols;
  bool maximize;  // the maximal sum, or the largest first
  Method method;
  int64_t* columns;  // [count, rows]
  double tie = 0;    // subtracted from the costs of the diagonal of a square problem (added when maximizing)
};

// The responses of the frames of some videos; channels are contiguous.
struct Responses {
  const void* values;  // [videos, frames, size, channels]
  Dtype dtype;
  int64_t videos;
  int frames;
  int size;
  int channels;
  int64_t stride_video, stride_frame, stride_response;
  double tie;  // a response is matched to the one of the same index if another cosine is larger by less than this
};

// Results of linking; see art_kernels.TrackletLinks. `similarity` is float64 for float64 responses, else float32.
struct Links {
  int64_t* matches;     // [videos, frames - 1, size], scratch: the matched response of the next frame
  void* matched;        // [videos, frames - 1, size], scratch: the cosines of these pairs, in the dtype of `similarity`
  int64_t* order;       // [videos, frames, size]
  void* similarity;     // [videos, frames - 1, size]
  int64_t* tracklet_id;  // [videos, frames, size]
};

// Solves on at most `threads` threads. Returns the index of the first problem without a solution, or -1.
int64_t solve_on_cpu(const Problems& problems, int threads);

// order[v, 0, k] = k and order[v, t + 1, k] = matches[v, t, order[v, t, k]], or -1 after a frame without matches.
void compose_on_cpu(const int64_t* matches, int64_t videos, int frames, int size, int64_t* order);

// The cosine of a zero vector (squared norm below the smallest normal number) is 0. A cosine that is not finite ranks
// below all others when matching. If `min_similarity` is not NaN, a link whose similarity is not at least that ends its
// tracklet, and a new one starts in its slot with the next number of its video, in order of frames, then slots;
// otherwise tracklet_id[v, t, k] = k. For float32 and float64 responses.
void link_on_cpu(const Responses& responses, Method method, double min_similarity, const Links& links, int threads);

#ifdef ART_KERNELS_WITH_CUDA
// Most responses per frame that `link_on_cuda` supports; their similarities stay in shared memory.
constexpr int kMaxLinked = 64;

// All three enqueue work on `stream` (a cudaStream_t) of the current device and return nullptr, or the error message of
// the CUDA runtime. They neither allocate nor synchronize.
const char* solve_on_cuda(const Problems& problems, void* stream);

// Like link_on_cpu, for every dtype.
const char* link_on_cuda(const Responses& responses, Method method, double min_similarity, const Links& links, void* stream);

// Like compose_on_cpu.
const char* compose_on_cuda(
    const int64_t* matches, int64_t videos, int frames, int size, int64_t* order, void* stream);
#endif

}  // namespace art
