// Batched linear assignment and tracklet linking: the contract between the solvers and whoever calls them.
//
// Nothing here knows of torch: pointers, sizes, dtypes and a stream. All tensors are contiguous unless strides are given,
// strides count elements, and every function checks nothing but what only it can see (numbers that are not finite).
#pragma once

#include <cstdint>

namespace art {

enum class Dtype : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// How the rows of a square matrix are matched to its columns, one to one.
//   optimal: the least sum of costs.
//   greedy:  the least cost first, then the least among the rows and columns that are left; of equal costs the one in the
//            lowest row, then the lowest column.
enum class Method : int { optimal = 0, greedy = 1 };

constexpr int kMaxSize = 256;

// `count` square problems of `size` (1 to kMaxSize). Row i of problem p goes to columns[p * size + i].
// Sums and dual variables are in float64, whatever the dtype of the costs, which it holds exactly.
struct Problems {
  const void* cost;  // [count, size, size]
  Dtype dtype;
  int64_t count;
  int size;
  bool maximize;  // the greatest sum, or the greatest first
  Method method;
  int64_t* columns;  // [count, size]; all -1 in a problem with NaN or inf
};

// The responses of the frames of some videos, as they lie; neighbouring channels are neighbours in memory.
struct Responses {
  const void* values;  // [videos, frames, size, channels]
  Dtype dtype;
  int64_t videos;
  int frames;
  int size;
  int channels;
  int64_t stride_video, stride_frame, stride_response;
};

// What linking finds; see art_kernels.TrackletLinks. `similarity` is float64 for float64 responses, else float32.
struct Links {
  int64_t* matches;     // [videos, frames - 1, size], scratch: the response of the next frame that each response goes to
  void* matched;        // [videos, frames - 1, size], scratch: the cosines of these pairs, in the dtype of `similarity`
  int64_t* order;       // [videos, frames, size]
  void* similarity;     // [videos, frames - 1, size]
  int64_t* tracklet_id;  // [videos, frames, size]
};

// Solves on `threads` threads at most. Returns the index of the first problem with NaN or inf, -1 where there is none.
int64_t solve_on_cpu(const Problems& problems, int threads);

// order[v, 0, k] = k and order[v, t + 1, k] = matches[v, t, order[v, t, k]], -1 once a frame has no matches.
void compose_on_cpu(const int64_t* matches, int64_t videos, int frames, int size, int64_t* order);

// The cosine of vectors that are zero (squared norm below the least normal number) is 0; one that is NaN, or not finite,
// counts as below every other when matching. Where `min_similarity` is not NaN, a link whose similarity is not at least
// that ends its tracklet, and another is born in its slot: it takes the next number of its video, counted frame by frame
// and slot by slot; without it tracklet_id[v, t, k] = k.
// Of float32 or float64 responses.
void link_on_cpu(const Responses& responses, Method method, double min_similarity, const Links& links, int threads);

#ifdef ART_KERNELS_WITH_CUDA
// The most responses a frame that `link_on_cuda` takes: their similarities stay in shared memory.
constexpr int kMaxLinked = 64;

// Both enqueue work on `stream` (a cudaStream_t) of the current device and return nullptr, or what the CUDA runtime says
// is wrong. They allocate nothing and wait for nothing.
const char* solve_on_cuda(const Problems& problems, void* stream);

// As link_on_cpu, of any dtype.
const char* link_on_cuda(const Responses& responses, Method method, double min_similarity, const Links& links, void* stream);

// As compose_on_cpu.
const char* compose_on_cuda(
    const int64_t* matches, int64_t videos, int frames, int size, int64_t* order, void* stream);
#endif

}  // namespace art
