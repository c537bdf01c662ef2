// The functions compiled once per instruction set, and the instruction sets that this processor supports.
#pragma once

#include <cstddef>
#include <cstdint>

#include "assignment.hpp"

namespace art {

// Memory sizes are in bytes, aligned for float64.
struct Processor {
  // Scratch memory of `solve`.
  size_t (*solve_bytes)(int rows, int cols, Method method);
  // Solves problems `begin` to `end`; returns the index of the first without a solution, or -1.
  int64_t (*solve)(const Problems& problems, int64_t begin, int64_t end, void* memory);

  // Scratch memory of `match_frames`.
  size_t (*match_frames_bytes)(int size, Method method);
  // Matches the pairs of adjacent frames `begin` to `end`: fills `matches` and `matched` of the links.
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

// Like solve_on_cpu and link_on_cpu, with the code for `processor`.
int64_t solve_with(const Processor& processor, const Problems& problems, int threads);
void link_with(const Processor& processor, const Responses& responses, Method method, double min_similarity,
               const Links& links, int threads);

}  // namespace art
