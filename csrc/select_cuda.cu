// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <mutex>
#include <utility>

#include "select_launch.cuh"

namespace hired {
namespace {

template <class Value>
Value* take(char** next, int64_t count) {
  auto* piece = reinterpret_cast<Value*>(*next);
  *next += (count * static_cast<int64_t>(sizeof(Value)) + 15) / 16 * 16;
  return piece;
}

// Cuts the workspace up, and returns where it ends.
char* carve(const Call& call, bool from_keys, char* base, DeviceWorkspace* workspace) {
  const int64_t P = call.P, T = call.plan->rules.tokens;
  const auto B = static_cast<int64_t>(call.plan->pictures.size());
  workspace->probabilities = take<float>(&base, from_keys ? (P + B) * call.H * T : 0);
  workspace->kept = take<int32_t>(&base, P * T);
  workspace->row_counts = take<uint32_t>(&base, P * call.plan->rules.side);
  workspace->budgets = take<int32_t>(&base, P);
  return base;
}

size_t bytes_of(const Call& call, bool from_keys) {
  DeviceWorkspace workspace;
  return static_cast<size_t>(carve(call, from_keys, nullptr, &workspace) -
                             static_cast<char*>(nullptr));
}

template <class SomeCall>
Status launch_any(const SomeCall& call, bool from_keys, const CudaPlace& place) {
  DeviceWorkspace workspace;
  carve(call, from_keys, static_cast<char*>(place.workspace), &workspace);
  workspace.counters = place.counters;
  if (call.plan->pictures.size() > kSmallBatch) {
    int device = 0, major = 0;
    if (Status status = cuda_status(cudaGetDevice(&device), "a device"); !status.ok()) {
      return status;
    }
    const cudaError_t error =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (Status status = cuda_status(error, "a device"); !status.ok()) return status;
    if (major >= 7) return launch_large(call, workspace, place);
  }
  return launch_all<kSmallBatch>(call, workspace, place);
}

// Allocates and clears counters at once, whatever the streams of the device are doing; allowed
// while one of them is being captured, since nothing of it is for the graph.
Status make_counters(Counters** counters) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return cuda_status(error, "counters");
  error = cudaMalloc(reinterpret_cast<void**>(counters), sizeof(Counters));
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(*counters, 0, sizeof(Counters), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (stream != nullptr) {
    const cudaError_t destroyed = cudaStreamDestroy(stream);
    if (error == cudaSuccess) error = destroyed;
  }
  const cudaError_t restored = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error == cudaSuccess) error = restored;
  return cuda_status(error, "counters");
}

}  // namespace

size_t cuda_workspace_bytes(const SelectCall& call) {
  return bytes_of(call, false);
}

size_t cuda_workspace_bytes(const SelectQkCall& call) {
  return bytes_of(call, true);
}

Status launch_select_cuda(const SelectCall& call, const CudaPlace& place) {
  return launch_any(call, false, place);
}

Status launch_select_qk_cuda(const SelectQkCall& call, const CudaPlace& place) {
  return launch_any(call, true, place);
}

Status find_counters(void* stream, Counters** counters) {
  static std::mutex mutex;
  static std::map<std::pair<int, void*>, Counters*> of_stream;
  int device = 0;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &capturing);
  }
  if (error != cudaSuccess) return cuda_status(error, "a stream");
  if (capturing != cudaStreamCaptureStatusNone) return make_counters(counters);
  const std::lock_guard<std::mutex> lock(mutex);
  Counters*& known = of_stream[{device, stream}];
  if (known == nullptr) {
    if (Status status = make_counters(&known); !status.ok()) {
      known = nullptr;
      return status;
    }
  }
  *counters = known;
  return Status::Ok();
}

}  // namespace hired
