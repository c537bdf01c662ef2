// Problems over threads, and each thread's share in the code for the processor that is there.
#include <algorithm>
#include <atomic>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "assignment.hpp"
#include "assignment_target.hpp"

namespace art {
namespace {

struct Target {
  size_t (*scratch_bytes)(const Problems&);
  int64_t (*solve_some)(const Problems&, int64_t, int64_t, void*);
};

Target find_target() {
#ifdef ART_KERNELS_X86_TARGETS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return {avx512::scratch_bytes, avx512::solve_some};
  if (__builtin_cpu_supports("avx2")) return {avx2::scratch_bytes, avx2::solve_some};
#endif
  return {portable::scratch_bytes, portable::solve_some};
}

// A thread takes longer to start than this many nanoseconds of work are worth.
constexpr double kWorthAThread = 50e3;

double nanoseconds(const Problems& problems) {
  const double size = problems.size;
  return problems.count * (size <= 4 ? size * size : 2 * size * size + 20 * size);
}

// Shares out [0, count) in pieces, a thread taking the next when it has done one, since problems differ.
class Shares {
 public:
  Shares(int64_t count, int threads) : count_(count), piece_(std::max<int64_t>(64, count / (threads * 16))) {}

  bool next(int64_t& begin, int64_t& end) {
    begin = next_.fetch_add(piece_);
    end = std::min(begin + piece_, count_);
    return begin < count_;
  }

 private:
  const int64_t count_, piece_;
  std::atomic<int64_t> next_{0};
};

void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t known = least.load();
  while (value < known && !least.compare_exchange_weak(known, value)) {
  }
}

}  // namespace

int64_t solve_on_cpu(const Problems& problems, int threads) {
  static const Target target = find_target();
  threads = static_cast<int>(std::clamp(nanoseconds(problems) / kWorthAThread, 1.0, std::max(1.0, double(threads))));
  const size_t scratch = target.scratch_bytes(problems) / sizeof(double) + 1;
  const auto memory = std::make_unique<double[]>(scratch * threads);
  Shares shares(problems.count, threads);
  std::atomic<int64_t> first_bad{problems.count};
  const auto work = [&](int thread) {
    for (int64_t begin, end; shares.next(begin, end);) {
      const int64_t bad = target.solve_some(problems, begin, end, memory.get() + thread * scratch);
      if (bad >= 0) lower(first_bad, bad);
    }
  };
  std::vector<std::thread> others;
  try {
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that are there do the work.
  }
  work(0);
  for (std::thread& other : others) other.join();
  return first_bad < problems.count ? first_bad.load() : -1;
}

void compose_on_cpu(const int64_t* matches, int64_t videos, int frames, int size, int64_t* order) {
  for (int64_t video = 0; video < videos; ++video) {
    for (int k = 0; k < size; ++k) *order++ = k;
    for (int frame = 1; frame < frames; ++frame, matches += size)
      for (int k = 0; k < size; ++k, ++order) *order = order[-size] < 0 ? -1 : matches[order[-size]];
  }
}

}  // namespace art
