// Divides problems among threads, and selects the code for the processor at run time.
#include <algorithm>
#include <atomic>
#include <memory>

#include "assignment.hpp"
#include "assignment_exact.hpp"
#include "processor.hpp"
#include "threads.hpp"

namespace art {
namespace {

// Of one problem.
double nanoseconds(const Problems& problems) {
  const double numbers = static_cast<double>(problems.rows) * problems.cols;
  return problems.rows <= kMaxEnumerated ? numbers : 2 * numbers + 20 * problems.rows;
}

void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t known = least.load();
  while (value < known && !least.compare_exchange_weak(known, value)) {
  }
}

}  // namespace

int64_t solve_with(const Processor& processor, const Problems& problems, int threads) {
  threads = worth(problems.count * nanoseconds(problems), threads);
  // At least 20 microseconds of work, unless that is more than 64 problems.
  const auto least = static_cast<int64_t>(std::clamp(20e3 / nanoseconds(problems), 1.0, 64.0));
  const int64_t piece = std::max(least, problems.count / (threads * 16));
  threads = static_cast<int>(std::min<int64_t>(threads, (problems.count + piece - 1) / piece));
  if (problems.dtype == Dtype::int64) {
    share_out(problems.count, piece, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t problem = begin; problem < end; ++problem) solve_exactly(problems, problem);
    });
    return -1;
  }
  const size_t scratch = processor.solve_bytes(problems.rows, problems.cols, problems.method) / sizeof(double) + 1;
  const auto memory = std::make_unique<double[]>(scratch * threads);
  std::atomic<int64_t> first_bad{problems.count};
  share_out(problems.count, piece, threads, [&](int thread, int64_t begin, int64_t end) {
    const int64_t bad = processor.solve(problems, begin, end, memory.get() + thread * scratch);
    if (bad >= 0) lower(first_bad, bad);
  });
  return first_bad < problems.count ? first_bad.load() : -1;
}

int64_t solve_on_cpu(const Problems& problems, int threads) { return solve_with(this_processor(), problems, threads); }

}  // namespace art
