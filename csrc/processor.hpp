// What is compiled once for each instruction set, and which of them this processor has.
#pragma once

#include <cstddef>
#include <cstdint>

#include "assignment.hpp"

namespace art {

// Memory is given in bytes, aligned as float64 is.
struct Processor {
  // What `solve` works in.
  size_t (*solve_bytes)(int size, Method method);
  // Solves the problems from `begin` to `end`; returns the index of the first with NaN or inf, or -1.
  int64_t (*solve)(const Problems& problems, int64_t begin, int64_t end, void* memory);

  // What `match_frames` works in.
  size_t (*match_frames_bytes)(int size, Method method);
  // Matches the responses of the pairs of adjacent frames from `begin` to `end`: `matches` and `matched` of the links.
  void (*match_frames)(
      const Responses& responses, Method method, const Links& links, int64_t begin, int64_t end, void* memory);
};

namespace portable {
extern const Processor kProcessor;
}
namespace avx2 {
extern const Processor kProcessor;
}
namespace avx512 {
extern const Processor kProcessor;
}

inline const Processor& this_processor() {
#ifdef ART_KERNELS_X86_TARGETS
  static const Processor& found =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
          ? avx512::kProcessor
      : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2::kProcessor
                                                                        : portable::kProcessor;
  return found;
#else
  return portable::kProcessor;
#endif
}

// As solve_on_cpu and link_on_cpu, in the code for `processor`.
int64_t solve_with(const Processor& processor, const Problems& problems, int threads);
void link_with(const Processor& processor, const Responses& responses, Method method, double min_similarity,
               const Links& links, int threads);

}  // namespace art
