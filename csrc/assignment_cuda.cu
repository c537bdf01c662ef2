// Launches of the CUDA kernels; the only file that calls the CUDA runtime.
#include <cuda_runtime.h>

#include "assignment.hpp"
#include "assignment_cuda.cuh"
#include "composition_cuda.cuh"
#include "linking_cuda.cuh"

namespace art {
namespace {

constexpr int64_t kMostBlocks = 0x7fffffff;
constexpr int kSharedBytesAnywhere = 48 * 1024;  // larger blocks must be requested explicitly

// Maximum bytes of shared memory per block on the current device.
int shared_bytes() {
  int device = 0, bytes = kSharedBytesAnywhere;
  if (cudaGetDevice(&device) == cudaSuccess)
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// Returns the error of this launch, not of an earlier one.
template <class... Parameters>
const char* enqueue(void (*kernel)(Parameters...), const Launch& launch, void* stream, Parameters... parameters) {
  if (launch.blocks == 0) return nullptr;
  if (launch.blocks > kMostBlocks) return cudaGetErrorString(cudaErrorInvalidConfiguration);
  void* pointers[] = {&parameters...};
  if (launch.shared_bytes > kSharedBytesAnywhere) {
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  const cudaError_t error = cudaLaunchKernel(
      reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(launch.blocks)),
      dim3(static_cast<unsigned>(launch.threads)), pointers, static_cast<size_t>(launch.shared_bytes),
      static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* solve_on_cuda(const Problems& problems, void* stream) {
  return with_solver(problems, shared_bytes(), [&](auto* kernel, const Launch& launch) {
    return enqueue(kernel, launch, stream, problems);
  });
}

const char* link_on_cuda(
    const Responses& responses, Method method, double min_similarity, const Links& links, void* stream) {
  const char* error = with_linker(responses, [&](auto* kernel, const Launch& launch, const FramePairs& pairs) {
    return enqueue(kernel, launch, stream, pairs, method, links);
  });
  if (error != nullptr) return error;
  const Composition composition = composition_of(responses, min_similarity, links);
  return enqueue(compose, launch_of_composition(composition), stream, composition);
}

const char* compose_on_cuda(
    const int64_t* matches, int64_t videos, int frames, int size, int64_t* order, void* stream) {
  const Composition composition = composition_of(matches, videos, frames, size, order);
  return enqueue(compose, launch_of_composition(composition), stream, composition);
}

}  // namespace art
