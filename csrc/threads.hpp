// Divides work among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace art {

// Number of threads worth starting: starting one takes longer than 50 microseconds of work.
inline int worth(double nanoseconds, int threads) {
  return static_cast<int>(std::clamp(nanoseconds / 50e3, 1.0, std::max(1.0, static_cast<double>(threads))));
}

// Calls work(thread, begin, end) for pieces of [0, count); a thread takes the next piece when it finishes one, because
// pieces take different times.
template <class Work>
void share_out(int64_t count, int64_t piece, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&](int thread) {
    for (int64_t begin; (begin = next.fetch_add(piece)) < count;) work(thread, begin, std::min(begin + piece, count));
  };
  std::vector<std::thread> others;
  try {
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  } catch (const std::system_error&) {
    // The system cannot start more threads; the existing ones do the work.
  }
  run(0);
  for (std::thread& other : others) other.join();
}

}  // namespace art
