// Runs the CUDA kernels of csrc/ on the CPU, launched as on a device, and compares them with naive solutions.
//
//   check_cuda_kernels            all checks; prints what it ran and ends with 1 at the first difference
//   check_cuda_kernels FAULT      runs a kernel with a fault (diverging, mixed, outside), which must not go unseen
#define ART_KERNELS_WITH_CUDA
#include "cuda_on_host.hpp"

#include "assignment_cuda.cuh"
#include "composition_cuda.cuh"
#include "linking_cuda.cuh"
#include "numbers_on_host.hpp"

#include <algorithm>
#include <cinttypes>
#include <random>
#include <string>

namespace {

using namespace art;
using naive::Matrix;

std::mt19937_64 generator;
double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }
double normal() { return std::normal_distribution<double>()(generator); }
int below(int end) { return static_cast<int>(generator() % static_cast<uint64_t>(end)); }

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16};

enum class Kind { uniform, normal, ties, equal, huge, tiny, identity, permuted, product, mixed, bad, kinds };
const char* const kKindNames[] = {"uniform", "normal",   "ties",    "equal", "huge", "tiny",
                                  "identity", "permuted", "product", "mixed", "bad"};

// Matrices that are hard in different ways.
Matrix costs_of(Kind kind, int size, Dtype dtype) {
  Matrix cost(static_cast<size_t>(size) * size);
  const double level = -3 * below(2);
  const int shift = below(size);
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) {
      double& c = cost[i * size + j];
      switch (kind) {
        case Kind::uniform: c = uniform(0, 1); break;
        case Kind::normal: c = normal(); break;
        case Kind::ties: c = (below(3) - 1) * (below(2) ? 1.0 : -1.0); break;  // with -0, equal to 0
        case Kind::equal: c = level == 0 && below(2) ? -0.0 : level; break;
        case Kind::huge: c = uniform(-1, 1) * naive::largest_of(dtype); break;
        case Kind::tiny: c = (below(2000) - 1000) * naive::smallest_of(dtype); break;
        case Kind::identity: c = (i == j ? -1 : 0) + 1e-3 * normal(); break;
        case Kind::permuted: c = (i + shift) % size == j ? 0.0 : std::fmin(1e30, 6e4); break;
        case Kind::product: c = (i + 1.0) * (j + 1.0) / (dtype == Dtype::float16 ? 4 : 1); break;
        case Kind::mixed: c = std::ldexp(below(7) - 3, below(4) == 0 ? 12 : 0); break;
        default: c = normal();
      }
    }
  }
  if (kind == Kind::bad) cost[below(size * size)] = below(3) == 0 ? kNan : below(2) ? HUGE_VAL : -HUGE_VAL;
  return cost;
}

// Problems of one shape, in the dtype of the kernel, each of another kind.
struct Batch {
  Dtype dtype;
  int size;
  std::vector<Kind> kinds;
  std::vector<char> bytes;
  std::vector<int64_t> columns;

  Matrix matrix(size_t problem, double sign) const {
    const size_t numbers = static_cast<size_t>(size) * size;
    Matrix cost(numbers);
    for (size_t e = 0; e < numbers; ++e) {
      cost[e] = sign * naive::decode(dtype, &bytes[(problem * numbers + e) * naive::bytes_of(dtype)]);
    }
    return cost;
  }
};

Batch batch_of(Dtype dtype, int size, const std::vector<Kind>& kinds) {
  const size_t numbers = static_cast<size_t>(size) * size;
  Batch batch{dtype, size, kinds, std::vector<char>(kinds.size() * numbers * naive::bytes_of(dtype)), {}};
  batch.columns.assign(kinds.size() * size, -7);
  char* to = batch.bytes.data();
  for (Kind kind : kinds) {
    for (double value : costs_of(kind, size, dtype)) naive::encode(dtype, value, to), to += naive::bytes_of(dtype);
  }
  return batch;
}

template <class... Parameters>
void run_kernel(void (*kernel)(Parameters...), const Launch& launch, Parameters... parameters) {
  cuda_on_host::launch(kernel, launch.blocks, launch.threads, launch.shared_bytes, parameters...);
}

[[noreturn]] void differ(const std::string& what, const Matrix& cost, int size, const int64_t* columns) {
  std::printf("FAILED: %s\ncolumns:", what.c_str());
  for (int i = 0; i < size; ++i) std::printf(" %" PRId64, columns[i]);
  for (int i = 0; i < size && size <= 16; ++i) {
    std::printf("\n");
    for (int j = 0; j < size; ++j) std::printf(" %a", cost[i * size + j]);
  }
  std::printf("\n");
  std::exit(1);
}

void check_solution(const Batch& batch, size_t problem, bool maximize, Method method, const std::string& what) {
  const int size = batch.size;
  const Matrix cost = batch.matrix(problem, maximize ? -1.0 : 1.0);
  const int64_t* columns = &batch.columns[problem * size];
  double largest = 0;
  bool finite = true;
  for (double c : cost) largest = std::fmax(largest, std::fabs(c)), finite = finite && std::isfinite(c);
  if (!finite) {
    for (int i = 0; i < size; ++i) {
      if (columns[i] != -1) differ(what + ": not -1 throughout", cost, size, columns);
    }
    return;
  }
  if (!naive::is_permutation(columns, size)) differ(what + ": no permutation", cost, size, columns);
  if (method == Method::greedy) {
    const auto expected = naive::least_first(cost, size);
    if (!std::equal(expected.begin(), expected.end(), columns)) differ(what + ": not greedy", cost, size, columns);
    return;
  }
  // Sums of integers are exact; others as far as float64 can tell.
  const Kind kind = batch.kinds[problem];
  const bool exact = kind == Kind::ties || kind == Kind::equal || kind == Kind::tiny || kind == Kind::product ||
                     kind == Kind::permuted || kind == Kind::mixed;
  const long double tolerance = exact ? 0 : 4.0L * size * 0x1p-53L * largest;
  const long double excess = naive::sum_of(cost, size, columns) - naive::least_sum(cost, size);
  if (excess > tolerance) differ(what + ": exceeds the optimum by " + std::to_string(excess), cost, size, columns);
}

void check_batch(Dtype dtype, int size, bool maximize, Method method, const std::vector<Kind>& kinds, int seed) {
  generator.seed(seed);
  Batch batch = batch_of(dtype, size, kinds);
  const Problems problems{batch.bytes.data(), dtype,  static_cast<int64_t>(kinds.size()), size, maximize,
                          method,             batch.columns.data()};
  with_solver(problems, [&](auto* kernel, const Launch& launch) { run_kernel(kernel, launch, problems); });
  for (size_t problem = 0; problem < kinds.size(); ++problem) {
    const std::string what = std::string(method == Method::greedy ? "greedy " : "optimal ") + naive::name_of(dtype) +
                             " size " + std::to_string(size) + (maximize ? " maximize" : "") + " seed " +
                             std::to_string(seed) + " problem " + std::to_string(problem) + " " +
                             kKindNames[static_cast<int>(kinds[problem])];
    check_solution(batch, problem, maximize, method, what);
  }
}

// All kinds, so that some warps hold good and bad problems, and a number of problems that fills no block. Large ones
// take long here: few of them, of other kinds each time.
std::vector<Kind> kinds_for(int size, int seed) {
  constexpr int kKinds = static_cast<int>(Kind::kinds);
  const int count = size > 65 ? 1 : size > 33 ? 4 : kKinds * (size > 9 ? 1 : size > 4 ? 5 : 19);
  std::vector<Kind> kinds;
  for (int n = 0; n < count; ++n) kinds.push_back(static_cast<Kind>((seed * count + n) % kKinds));
  generator.seed(seed);
  std::shuffle(kinds.begin(), kinds.end(), generator);
  return kinds;
}

void check_solvers() {
  int seed = 0;
  size_t solved = 0;
  for (int size : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 129, 200, 256}) {
    for (Dtype dtype : kDtypes) {
      for (Method method : {Method::optimal, Method::greedy}) {
        for (bool maximize : {false, true}) {
          const auto kinds = kinds_for(size, ++seed);
          check_batch(dtype, size, maximize, method, kinds, seed);
          solved += kinds.size();
        }
      }
    }
    std::printf("size %d\n", size);
  }
  std::printf("assignment: %zu problems agree\n", solved);
}

// Responses as they may lie in memory: with numbers between them that must not be read into anything (NaN).
struct Film {
  Dtype dtype;
  int videos, frames, size, channels;
  int64_t stride_video, stride_frame, stride_response;
  size_t offset;  // numbers before the first
  std::vector<char> bytes;

  Responses responses() const {
    return {&bytes[offset * naive::bytes_of(dtype)], dtype, videos, frames, size, channels, stride_video, stride_frame,
            stride_response};
  }
  size_t place(int video, int frame, int row, int channel) const {
    return (offset + video * stride_video + frame * stride_frame + row * stride_response + channel) *
           naive::bytes_of(dtype);
  }
  double value(int video, int frame, int row, int channel) const {
    return naive::decode(dtype, &bytes[place(video, frame, row, channel)]);
  }
};

struct FilmShape {
  int videos, frames, size, channels;
  int gap;        // numbers between responses
  size_t offset;  // of the first
  bool transposed;  // responses of a frame lie further apart than frames
};

Film film_of(Dtype dtype, const FilmShape& shape) {
  Film film{dtype, shape.videos, shape.frames, shape.size, shape.channels, 0, 0, 0, shape.offset, {}};
  const int64_t row = shape.channels + shape.gap;
  film.stride_response = shape.transposed ? row * shape.frames : row;
  film.stride_frame = shape.transposed ? row : row * shape.size;
  film.stride_video = row * (shape.size * shape.frames + 1);
  const size_t bytes = naive::bytes_of(dtype);
  const size_t last = film.place(shape.videos - 1, shape.frames - 1, shape.size - 1, shape.channels - 1);
  film.bytes.resize(last + bytes);
  for (size_t at = 0; at < film.bytes.size(); at += bytes) naive::encode(dtype, kNan, &film.bytes[at]);
  for (int v = 0; v < shape.videos; ++v) {
    // Responses that go on, changing places from frame to frame.
    Matrix base(static_cast<size_t>(shape.size) * shape.channels);
    for (double& number : base) number = normal();
    for (int t = 0; t < shape.frames; ++t) {
      for (int k = 0; k < shape.size; ++k) {
        const int fate = below(25);  // a few are zero or NaN
        const int source = (k * 5 + t * 3 + below(2)) % shape.size;
        for (int c = 0; c < shape.channels; ++c) {
          double number = base[static_cast<size_t>(source) * shape.channels + c] + 0.7 * normal();
          if (fate == 0) number = 0;
          if (fate == 1 && c == shape.channels / 2) number = kNan;
          if (fate == 2 && dtype != Dtype::float16) number *= 1e-25;  // zero to float32, which has no such squares
          naive::encode(dtype, number, &film.bytes[film.place(v, t, k, c)]);
        }
      }
    }
  }
  return film;
}

// Cosines of the responses of a frame and the next. NaN is NaN.
Matrix cosines_of(const Film& film, int video, int frame) {
  const double tiny = film.dtype == Dtype::float64 ? 0x1p-1022 : 0x1p-126;
  const auto dot = [&](int t, int i, int u, int j) {
    double sum = 0;
    for (int c = 0; c < film.channels; ++c) sum += film.value(video, t, i, c) * film.value(video, u, j, c);
    return sum;
  };
  std::vector<double> here(film.size), next(film.size);
  for (int k = 0; k < film.size; ++k) here[k] = dot(frame, k, frame, k), next[k] = dot(frame + 1, k, frame + 1, k);
  Matrix cosines(static_cast<size_t>(film.size) * film.size);
  for (int i = 0; i < film.size; ++i) {
    for (int j = 0; j < film.size; ++j) {
      const bool zero = here[i] < tiny || next[j] < tiny;
      const double cosine = dot(frame, i, frame + 1, j) / std::sqrt(here[i]) / std::sqrt(next[j]);
      cosines[i * film.size + j] = zero && !std::isnan(here[i] + next[j]) ? 0.0 : cosine;
    }
  }
  return cosines;
}

template <class Real>
struct LinkResult {
  std::vector<int64_t> matches, order, tracklet_id;
  std::vector<Real> matched, similarity;

  LinkResult(size_t videos, size_t frames, size_t size)
      : matches(videos * (frames - 1) * size, -7),
        order(videos * frames * size, -7),
        tracklet_id(videos * frames * size, -7),
        matched(videos * (frames - 1) * size, Real(-7)),
        similarity(videos * (frames - 1) * size, Real(-7)) {}

  Links links() {
    return {matches.data(), matched.data(), order.data(), similarity.data(), tracklet_id.data()};
  }
};

template <class Real>
void check_matches(const Film& film, Method method, const LinkResult<Real>& result, const std::string& what) {
  const double tolerance = film.dtype == Dtype::float64 ? 1e-13 : 3e-6;
  for (int v = 0; v < film.videos; ++v) {
    for (int t = 0; t + 1 < film.frames; ++t) {
      const size_t first = (static_cast<size_t>(v) * (film.frames - 1) + t) * film.size;
      const int64_t* columns = &result.matches[first];
      const Matrix cosines = cosines_of(film, v, t);
      Matrix cost = cosines;
      for (double& c : cost) c = std::isnan(c) ? kUnknown : -c;
      const std::string where = what + " video " + std::to_string(v) + " frame " + std::to_string(t);
      if (!naive::is_permutation(columns, film.size)) differ(where + ": no permutation", cost, film.size, columns);
      for (int k = 0; k < film.size; ++k) {
        const double expected = cosines[k * film.size + columns[k]];
        const double got = result.matched[first + k];
        const bool same = std::isnan(expected) ? std::isnan(got) : std::fabs(got - expected) <= tolerance;
        if (!same) differ(where + ": another cosine, " + std::to_string(got), cost, film.size, columns);
      }
      const bool good = method == Method::greedy
                            ? naive::is_least_first(cost, film.size, columns, 2 * tolerance)
                            : naive::sum_of(cost, film.size, columns) <=
                                  naive::least_sum(cost, film.size) + 2 * film.size * tolerance;
      if (!good) differ(where + ": not the best", cost, film.size, columns);
    }
  }
}

template <class T>
void expect_same(const std::vector<T>& got, const std::vector<T>& expected, const std::string& what) {
  for (size_t e = 0; e < expected.size(); ++e) {
    if (got[e] == expected[e] || (got[e] != got[e] && expected[e] != expected[e])) continue;
    std::printf("FAILED: %s: number %zu is %g, expected %g\n", what.c_str(), e, static_cast<double>(got[e]),
                static_cast<double>(expected[e]));
    std::exit(1);
  }
}

// What follows from the matches and their similarities, by the words of the contract.
template <class Real>
void compose_naively(int videos, int frames, int size, double min_similarity, LinkResult<Real>& result) {
  for (int v = 0; v < videos; ++v) {
    int64_t next = size;
    for (int k = 0; k < size; ++k) result.order[v * frames * size + k] = result.tracklet_id[v * frames * size + k] = k;
    for (int t = 0; t + 1 < frames; ++t) {
      const size_t here = (static_cast<size_t>(v) * frames + t) * size;
      const size_t match = (static_cast<size_t>(v) * (frames - 1) + t) * size;
      for (int k = 0; k < size; ++k) {
        const int64_t response = result.order[here + k];
        result.order[here + size + k] = response < 0 ? -1 : result.matches[match + response];
        if (response < 0) continue;
        const Real similarity = result.matched[match + response];
        result.similarity[match + k] = similarity;
        const bool ends = !std::isnan(min_similarity) && !(similarity >= static_cast<Real>(min_similarity));
        result.tracklet_id[here + size + k] = ends ? next++ : result.tracklet_id[here + k];
      }
    }
  }
}

template <class Real>
void check_composed(int videos, int frames, int size, double min_similarity, const LinkResult<Real>& result,
                    const std::string& what) {
  LinkResult<Real> expected = result;
  compose_naively(videos, frames, size, min_similarity, expected);
  expect_same(result.order, expected.order, what + " order");
  expect_same(result.similarity, expected.similarity, what + " similarity");
  expect_same(result.tracklet_id, expected.tracklet_id, what + " tracklet_id");
}

void run_composition(const Composition& composition) {
  run_kernel(compose, launch_of_composition(composition), composition);
}

template <class Real>
void check_film(Dtype dtype, const FilmShape& shape, Method method, double min_similarity, int seed) {
  generator.seed(seed);
  const Film film = film_of(dtype, shape);
  LinkResult<Real> result(shape.videos, shape.frames, shape.size);
  const Responses responses = film.responses();
  with_linker(responses, [&](auto* kernel, const Launch& launch, const FramePairs& pairs) {
    run_kernel(kernel, launch, pairs, method, result.links());
  });
  run_composition(composition_of(responses, min_similarity, result.links()));
  const std::string what = std::string("linking ") + naive::name_of(dtype) + " size " + std::to_string(shape.size) +
                           " channels " + std::to_string(shape.channels) + " seed " + std::to_string(seed);
  check_matches(film, method, result, what);
  check_composed(shape.videos, shape.frames, shape.size, min_similarity, result, what);
}

void check_linking() {
  int seed = 1000;
  int films = 0;
  for (int size : {1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64}) {
    for (int channels : {1, 7, 96, 256}) {
      for (Dtype dtype : kDtypes) {
        const int large = size > 16;
        // Rows that can be read in units, that begin or follow each other at odd places, and that are frames apart.
        const FilmShape shapes[] = {{2, 4 - large, size, channels, 0, 0, false},
                                    {1 + !large, 3 - large, size, channels, 3, 1, false},
                                    {1, 3 - large, size, channels, 8 - channels % 8, channels == 96 ? 1u : 8u, true}};
        for (const FilmShape& shape : shapes) {
          const Method method = ++seed % 3 == 0 ? Method::greedy : Method::optimal;
          const double min_similarity = seed % 2 ? 0.4 : kNan;
          if (dtype == Dtype::float64) check_film<double>(dtype, shape, method, min_similarity, seed);
          if (dtype != Dtype::float64) check_film<float>(dtype, shape, method, min_similarity, seed);
          ++films;
        }
      }
    }
    std::printf("linking of %d\n", size);
  }
  check_film<float>(Dtype::float32, {3, 1, 2, 5, 0, 0, false}, Method::optimal, 0.5, ++seed);
  std::printf("linking: %d films agree\n", films + 1);
}

// Long videos, which go through shared memory a piece at a time, with links and without.
void check_composition(int videos, int frames, int size, bool links, double min_similarity, int seed) {
  generator.seed(seed);
  LinkResult<float> result(videos, frames, size);
  for (size_t first = 0; first < result.matches.size(); first += size) {
    std::vector<int64_t> permutation(size);
    for (int k = 0; k < size; ++k) permutation[k] = k;
    std::shuffle(permutation.begin(), permutation.end(), generator);
    const bool unknown = !links && below(40) == 0;  // a problem with NaN
    for (int k = 0; k < size; ++k) {
      result.matches[first + k] = unknown ? -1 : permutation[k];
      result.matched[first + k] = below(9) == 0 ? static_cast<float>(kNan) : static_cast<float>(uniform(-1, 1));
    }
  }
  const std::string what = "composition of " + std::to_string(frames) + " frames of " + std::to_string(size);
  if (links) {
    const Responses responses{nullptr, Dtype::bfloat16, videos, frames, size, 1, 0, 0, 0};
    run_composition(composition_of(responses, min_similarity, result.links()));
    check_composed(videos, frames, size, min_similarity, result, what);
  } else {
    run_composition(composition_of(result.matches.data(), videos, frames, size, result.order.data()));
    LinkResult<float> expected = result;
    compose_naively(videos, frames, size, kNan, expected);
    expect_same(result.order, expected.order, what);
  }
}

void check_compositions() {
  int seed = 2000;
  int compositions = 0;
  for (int size : {1, 2, 5, 31, 64, 65, 200, 256}) {
    for (int frames : {1, 2, 17, 4096 / size + 2, 2 * (4096 / size) + 1}) {
      if (size <= kMaxLinked) check_composition(2, frames, size, true, -0.6, ++seed);
      if (size <= kMaxLinked) check_composition(2, frames, size, true, kNan, ++seed);
      check_composition(3, frames, size, false, kNan, ++seed);
      compositions += size <= kMaxLinked ? 3 : 1;
    }
  }
  std::printf("composition: %d agree\n", compositions);
}

// Kernels with faults.
void vote_of_some(int* votes) {
  if (threadIdx.x < 7) *votes += static_cast<int>(__ballot_sync(kAllLanes, true));
}
void votes_and_barriers(int* votes) {
  if (threadIdx.x < 7) {
    *votes += static_cast<int>(__ballot_sync(kAllLanes, true));
  } else {
    __syncwarp();
  }
}
void outside(int* votes) { *votes += dynamic_shared_memory()[64 + threadIdx.x]; }

int run_faulty(const std::string& fault) {
  int votes = 0;
  if (fault == "diverging") cuda_on_host::launch(vote_of_some, 1, 32, 0, &votes);
  if (fault == "mixed") cuda_on_host::launch(votes_and_barriers, 1, 32, 0, &votes);
  if (fault == "outside") cuda_on_host::launch(outside, 1, 32, 64, &votes);
  std::printf("the fault %s was not seen\n", fault.c_str());
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) return run_faulty(arguments[1]);
  check_compositions();
  check_linking();
  check_solvers();
  return 0;
}
