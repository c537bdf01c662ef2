// What assignment_target.cpp defines for each instruction set that it is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "assignment.hpp"

// scratch_bytes: what `solve_some` works in, aligned as float64 is.
// solve_some: solves the problems from `begin` to `end`; returns the index of the first with NaN or inf, or -1.
#define ART_DECLARE_TARGET(target)                                                               \
  namespace art::target {                                                                        \
  size_t scratch_bytes(const Problems& problems);                                                \
  int64_t solve_some(const Problems& problems, int64_t begin, int64_t end, void* memory);        \
  }

ART_DECLARE_TARGET(portable)
ART_DECLARE_TARGET(avx2)
ART_DECLARE_TARGET(avx512)

#undef ART_DECLARE_TARGET
