// Divides problems among threads, and selects the code for the processor at run time.
#include <algorithm>
#include <atomic>
#include <memory>

#include "assignment.hpp"
#include "processor.hpp"
#include "threads.hpp"

namespace art {
namespace {

double nanoseconds(const Problems& problems) {
  const double size = problems.size;
  return problems.count * (size <= kMaxEnumerated ? size * size : 2 * size * size + 20 * size);
}

void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t known = least.load();
  while (value < known && !least.compare_exchange_weak(known, value)) {
  }
}

}  // namespace

int64_t solve_with(const Processor& processor, const Problems& problems, int threads) {
  threads = worth(nanoseconds(problems), threads);
  const size_t scratch = processor.solve_bytes(problems.size, problems.method) / sizeof(double) + 1;
  const auto memory = std::make_unique<double[]>(scratch * threads);
  std::atomic<int64_t> first_bad{problems.count};
  const int64_t piece = std::max<int64_t>(64, problems.count / (threads * 16));
  share_out(problems.count, piece, threads, [&](int thread, int64_t begin, int64_t end) {
    const int64_t bad = processor.solve(problems, begin, end, memory.get() + thread * scratch);
    if (bad >= 0) lower(first_bad, bad);
  });
  return first_bad < problems.count ? first_bad.load() : -1;
}

int64_t solve_on_cpu(const Problems& problems, int threads) { return solve_with(this_processor(), problems, threads); }

}  // namespace art
