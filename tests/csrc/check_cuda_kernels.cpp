// Runs the CUDA kernels of csrc/ on the CPU, launched as on a device, and compares them with naive solutions.
//
//   check_cuda_kernels            runs all checks, prints their names and exits with 1 at the first difference
//   check_cuda_kernels FAULT      runs a faulty kernel (diverging, mixed, outside); the fault must be detected
#define ART_KERNELS_WITH_CUDA
#include "cuda_on_host.hpp"

#include "assignment_cuda.cuh"
#include "composition_cuda.cuh"
#include "linking_cuda.cuh"
#include "films_on_host.hpp"

namespace {

using namespace art;

template <class... Parameters>
void run_kernel(void (*kernel)(Parameters...), const Launch& launch, Parameters... parameters) {
  cuda_on_host::launch(kernel, launch.blocks, launch.threads, launch.shared_bytes, parameters...);
}

void run_composition(const Composition& composition) {
  run_kernel(compose, launch_of_composition(composition), composition);
}

// Like on a device with this much shared memory per block.
void solve_by_kernels(const Problems& problems, int shared_bytes) {
  with_solver(problems, shared_bytes, [&](auto* kernel, const Launch& launch) { run_kernel(kernel, launch, problems); });
}

void link_by_kernels(const Responses& responses, Method method, double min_similarity, const Links& links) {
  with_linker(responses, [&](auto* kernel, const Launch& launch, const FramePairs& pairs) {
    run_kernel(kernel, launch, pairs, method, links);
  });
  run_composition(composition_of(responses, min_similarity, links));
}

// Long videos, which are staged in shared memory in pieces, with and without links.
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
    const Responses responses{nullptr, Dtype::bfloat16, videos, frames, size, 1, 0, 0, 0, 0.0};
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

// Faulty kernels.
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
  check_linking({std::begin(kDtypes), std::end(kDtypes)}, link_by_kernels);
  check_solvers([](const Problems& problems) {
    solve_by_kernels(problems, 227 * 1024);
    const std::vector<int64_t> columns(problems.columns, problems.columns + problems.count * problems.rows);
    const int size = size_of(problems);
    const int bytes = problems.dtype == Dtype::float64 ? block_bytes<double>(size) : block_bytes<float>(size);
    if (size <= 32 || bytes > 227 * 1024) return;  // solved by warps, or already in global memory
    solve_by_kernels(problems, 4 * 1024);  // too little for any costs: global memory, the same matching
    expect_same(std::vector<int64_t>{problems.columns, problems.columns + columns.size()}, columns, "costs in global memory");
  });
  return 0;
}
